"""What tests of objects run: the closure that L-BFGS calls, and threads that meet as often as can be."""

import contextlib
import sys
import threading


def closure_of(opt, loss, *params):
    """A closure for `opt.step`: the loss at these parameters and, in them, its gradients."""

    def closure():
        opt.clear_grad()
        value = loss(*params)
        value.backward()
        return value

    return closure


@contextlib.contextmanager
def in_threads(*calls):
    """Each call in a thread of its own, beside the block; threads change places as often as can be.

    At its end all have ended, else a lock was left held, and none has failed.
    """
    failures = []

    def run(call):
        try:
            call()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for t in threads:
            t.start()
        yield
    finally:
        for t in threads:
            t.join(120)
        sys.setswitchinterval(interval)
    assert not any(t.is_alive() for t in threads)
    assert not failures, failures
