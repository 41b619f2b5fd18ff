"""How equal the numbers are to Paddle's, and how that is tested.

The real Paddle 3.3.1 and 1.8.5 were run, and their runs recorded in `tests/golden`; what recorded them lies
in `tests/oracle`. The tests replay every recorded step of every optimizer, wrapper, schedule, clip and
scaler, as functions and as objects, with dense and with sparse gradients.

- Parameters and accumulators agree within 5e-6 of a tensor's largest magnitude in float32.
- They agree within 2e-6 in float64. Paddle rounds hyperparameters to float32 even then; paddlejax does not.
- Keys, shapes and dtypes of the state are exactly Paddle's.
- Of each kind of checkpoint, a training goes on from Paddle's step 10 to Paddle's step 20 here, and from
  step 10 of paddlejax there. `PADDLEJAX_ORACLE3=/path/python PADDLEJAX_ORACLE18=/path/python pytest -m slow
  tests/test_checkpoint_oracle.py` runs the real Paddles. `PADDLEJAX_ORACLE_FOLDERS=/path/python pytest -m
  slow tests/test_checkpoint_folders_oracle.py` lets the real PaddleNLP or PaddleFormers go on from folders.

A second reference is written in numpy from what was observed, not from the code: `tests/reference.py`.
`pytest tests/test_golden.py tests/test_reference.py` runs both comparisons.

Where paddlejax computes other numbers on purpose, `paddlejax.guide.differences` says so.
"""
