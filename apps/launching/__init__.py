"""Launch a training or a sweep, on this machine or on SLURM; `tools/launch.py` is the command line.

    assets/outputs/sweeps/<sweep>/
      sweep.json           what is swept: script, configuration, parameters, search
      auto.json            precision and compile of all trials that leave them auto, as the first measured
      trials/<n>.json      parameters of trial n, and its error if it was given up
      trials/<n>.lock      held by the process that runs trial n
      trials/<n>.job       the SLURM job that runs it
      logs/<n>.log         its output, over all attempts
      optuna.journal       state of the search (also read by optuna-dashboard)
      slurm/               the files of submitit

The experiment store is the authority on trials: `<sweep>_<n>` is finished there, running, or can be
resumed. The folder above only lists the trials.

plan.py      a command line, validated before anything is written
space.py     `optimizer.lr=1e-3,3e-4`, `seed=range(5)`, `loguniform(1e-4,1e-2)`
command.py   the command line and the environment of a trial
sweep.py     the folder of a sweep and the records of its trials
search.py    proposes trials: a grid, or Optuna
attempt.py   one attempt at a trial: process, lock, outcome
runner.py    the interface of places to run trials
local.py     trials on this machine, which share its threads and GPUs
slurm.py     trials as SLURM jobs, by submitit
launcher.py  the loop: start, watch, retry, stop
view.py      progress
report.py    results
"""
