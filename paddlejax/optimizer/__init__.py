"""Paddle's optimizers as objects: parameters, gradients, state and rate in one place.

This page is for those who change the package: how a step goes, who owns an array, when it is donated, what
an interrupt leaves, and when a Loss is current.

How one `minimize` goes
-----------------------

    y = f(w, x)              Loss: the call, and the arrays that its Parameters hold. Nothing is computed.
         |
    opt.minimize(y)          Optimizer._minimize asks Stepping._fuses: may all be one program?
         |
    Stepping._run            Which Parameters take part? They are divided into StepGroups: those of one group
         |                   have taken the same steps and share scalars such as beta1_pow_acc.
         |
    CompiledStep             One functional transformation, made once for these Parameters and kept:
         |
         |                       +- Masters, if there are any -------------------+
         |                       |  +- the parts of wrappers, such as LookAhead -+
         |                       |  |  +- the base: Rules (per group) or Given  -+
         |                       |  |  |  clip, decay and rule of every leaf    |
         |                       +--+--+-----------------------------------------+
         |
         |                   values = Store.take() of every Store, state = that of groups and parts
         |
    run_atomically           runs the program: forward, backward, update. Values and state are donated.
         |
    store                    CompiledStep.keep: the new values into the Stores, the new state into parts and
                             StepGroups. Loss.settle: the loss keeps its value. Gradients are spent.

Where `_fuses` says no (the loss ran backward already, or another gradient takes part), `Loss.gradients` runs
first. `step` and `apply_gradients` begin at `Stepping._run` too; their program is the update alone, and the
gradients are arguments of it that are not donated. Where a part `waits` (gradient merge between two steps),
nothing inside this part is reached: no rule runs. L-BFGS and waiting parts have the base `Given`, which moves
values without a rule. DGC with several workers brings a program of its own, under the same rules.

Who owns an array
-----------------

Every Parameter has one `Store` for life. Others ask it for the array; only `CompiledStep`, which calls `take`
and `keep` for every Store at every step, does in line what they do.

    peek    to read the array now, and not keep it
    share   to keep the array (`Parameter.value` does): from then on it is not the Store's alone
    take    to donate the array: if it was shared, the Store puts a copy in its place first
    keep    to store what the program made of the array that `take` returned
    put     to store any other new array, which nobody else holds

So an array that a user got from `.value` never changes and is never deleted by a step. The price is one copy
at the next step. With packed=True the values of several Parameters lie in one `packing.Buffer`, which answers
to `take` and `keep` as a Store does.

The state of a step (slots, shared scalars, masters, slow weights, sums) belongs to its StepGroup or part
alone. `state_dict` gives copies and `set_state_dict` takes copies, so that nobody else holds an array of it.
`Optimizer.masters` gives the arrays themselves: read them at once, the next step donates them.
No array may stand in two states, as it could not be donated twice: a split group copies its scalars.

When an array is donated
------------------------

The programs of a CompiledStep donate the values and the state of what they step. They do not donate
gradients, the rate, the data of a loss, and Parameters that the loss reads but the step does not move. After
the program has run, a donated array is deleted; the result may lie in its memory. Whoever adds an argument to
a program that may be donated must own it: take it from a Store, or from a state that nobody else holds.

What an interrupt leaves
------------------------

A step happens as a whole or not at all: after an error while the program is made, and after a
KeyboardInterrupt at any place. An error of a program that runs comes below.

    before the program has run    `undo` puts the groups and masters back as they were. A part's `state`
                                  has changed nothing that can be seen, so all is as it was.
    after it has run              The arguments are gone, so the result must be stored: `store` is called
                                  a second time. Therefore a `keep` only assigns what was known before
                                  it: to call it twice gives what once gives.

One call into C runs the program and keeps its result. So an interrupt cannot come between the two. A second
interrupt, while the first is being handled, is not provided for.

JAX builds the result of a program inside that call, and for a NamedTuple or a registered class it runs
Python code there. So programs that donate are `in_one`: their result is made in C, and `opened` afterwards.
The first run of a program goes through Python code of JAX: an interrupt there, after XLA has run, can still
lose the arguments.

Which programs are kept
-----------------------

Programs live in tables of at most 64 entries (`recent.KEPT`), from which what was not used for longest goes:
per optimizer the programs of steps, those with a loss in them, and the plans of the clips that `minimize` was
given; for all losses their forward and backward; per loss function and per RecomputeOptimizer what was made
of its calls. What has gone is compiled anew.

    a new rate, factor, batch      no new program
    an option that is a number     one more, in which numbers are data
    a clip for one `minimize`      none if there was an equal one; one more if only its number differs
    set_state_dict                 none
    a new static argument, loss    one
    another subset of Parameters   one each for the first 4 (`flagged.FEW`), then one for all there may be

This one, a FlaggedStep, has all trainable Parameters, scalars of each, and flags as data. It computes all and
keeps what the flags say; rounding may differ by an ulp where XLA fuses otherwise. After 100 steps in a row
that reach the same (`flagged.LONG`) these get a program of their own again. There is none for packed buffers,
gradient merge, measured steps, a pipeline, a clip of the user's own, Parameters of float32 and float64 in one
optimizer, and a loss that leaves out a sparse table: these keep a program per subset, in the table. The
programs of a ModelAverage become one in the same way.

Two optimizers share no program: it has the Parameters in it, which the rule's exclusions are asked about, and
would keep their arrays alive.

What an error of the running program leaves
-------------------------------------------

A donated array is gone also where the program fails. So every program is a `programs.Watched`: before it is
compiled somebody looks at it.

    it calls out (pure_callback, io_callback, debug.print, an effect, an FFI call), or it needs more than half
    of the memory that is free:

        a loss               Forward and backward run by themselves, donate nothing and are waited for. Then
                             the step follows as a second program.
        a rule, clip, decay  The update runs beside its arguments and is waited for (of those that need much
                             memory only one that cannot run at all, as this takes memory too).

    jax_debug_nans, _infs    No program donates.
    set_safe()               Forward and backward, then the update, each waited for.

What was computed elsewhere and could not be (a gradient, an array that a loss is given) is found before it is
donated to, on a CPU; elsewhere that would take time from the device, and only `set_safe()` waits. All this is
found out while a program is compiled: a step that needs none of it is as fast as without.

What remains: without `set_safe()` an error that nobody could foresee, such as a device that is lost or memory
that another process took meanwhile, may be raised by a later call, and what was donated is gone. With it, the
call itself raises; only what an update was given can be gone.

When a Loss is current
----------------------

A Loss is current while every Parameter of it holds the same array as when the Loss was built. A step and
`set_value` change that. Reading a Parameter does not.

    current                       Its value, `backward` and `minimize` use the arrays of now.
    not current, not computed     The arrays that it was built from are used if they still exist. If a step
                                  has donated one of them, a RuntimeError says so.
    computed before               Its value stays. It can be asked for at any time.
    backward has run              It has let go of its arrays. Backward cannot run again.

Only a current Loss may be fused with a step, since the program takes the values out of the Stores and not
out of the Loss. A sum of losses is current while all its parts are.

Who takes a gradient
--------------------

`lazy_grad` is the gradient that the next step takes, `spent` the one that a `minimize` has stepped with.
A Parameter has at most one of the two, and `.grad` shows it.

    loss.backward()               adds to `lazy_grad`.
    step, apply_gradients         take gradients and leave them.
    minimize                      computes gradients without storing them, adds what is in `lazy_grad`, steps,
                                  and then stores the sum in `spent`. Its other Parameters lose their `spent`.
    minimize, of Parameters that  keeps their gradients with the loss (`left`), for the `minimize` of the
    another optimizer has         optimizer that has them. They add to no gradient.

Several threads
---------------

Two locks are for all objects, see `gate`. Whoever reads (`.value`, `.grad`, `state_dict`, `values(params)`)
waits while a program has the memory and its result is not stored, and no longer. A reader in a signal handler
first stores what is pending. Programs that call out do not run under the lock, so a callback may read. A step
in a callback donates copies of what the program reads, as it would wait for that for ever; this helps where
the callback runs in the thread of the call, as on CPUs, since another thread has to wait for its turn. Each
read is of one moment: `values(params)` is all of one step, `p.numpy()` of one Parameter after another is not.
Nor is L-BFGS's step hidden: it moves the Parameters while it searches, and who reads in another thread finds
a point of the search, all of it. A copy or deepcopy is of one moment. A pickle is made object by object: an
optimizer's has the values that belong to its state, a wrapper's may be a step ahead or behind of what is
inside. Where that matters pickle a deepcopy. A fork waits until no other thread is storing.

Inside a trace
--------------

While JAX traces a function that is not a loss's own, an object can be neither read nor changed: `tracing`
raises. Its value would become a constant of the program, and what is stored would be a tracer.
"""

from typing import TYPE_CHECKING

from ..elsewhere import names_of
from ..pages import publish
from . import lr
from .classes import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lamb,
    Momentum,
    NAdam,
    RAdam,
    RMSProp,
    Rprop,
)
from .lbfgs import LBFGS
from .muon import Muon
from .optimizer import Optimizer

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lamb",
    "Momentum",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "Rprop",
    "lr",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
