"""One training command or a whole sweep of them, on this machine or on SLURM; `tools/launch.py` is its command line.

    assets/outputs/sweeps/<sweep>/
      sweep.json           what is swept: script, configuration, parameters, search
      auto.json            precision and compile of all trials that leave them auto, as the first measured
      trials/<n>.json      what trial n was given, and why it was given up
      trials/<n>.lock      held by whoever runs trial n
      trials/<n>.job       the SLURM job that runs it
      logs/<n>.log         what it printed, every attempt after the other
      optuna.journal       the memory of the search (also read by optuna-dashboard)
      slurm/               the files of submitit

The truth about a trial is in the experiment store: `<sweep>_<n>` is finished there, or running, or it
can be resumed. The folder above only says which trials there are.

plan.py      a command line, checked before anything is written
space.py     `optimizer.lr=1e-3,3e-4`, `seed=range(5)`, `loguniform(1e-4,1e-2)`
command.py   the command line and the environment of a trial
sweep.py     the folder of a sweep and the records of its trials
search.py    where the next trial comes from: a grid, or Optuna
attempt.py   one attempt at a trial: a process, the lock of the trial, how it ended
runner.py    what a place for trials offers
local.py     trials on this machine, which share its threads and GPUs
slurm.py     trials as SLURM jobs, by submitit
launcher.py  the loop: start, watch, try again, stop
view.py      how it stands
report.py    what came of it
"""
