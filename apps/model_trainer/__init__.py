"""Training as a service: runs over HTTP that survive every crash. docs/service.md describes it.

A run of the service is an experiment of the store, trained by its project's train.py in a process of its own.
Files are the truth (records.py); the queue in Redis can be lost and is rebuilt (reconciler.py).

    POST /runs/train    api/runs.py      validated (projects.py), recorded (records.py), queued (queue.py)
      worker            worker.py        RQ runs one supervisor per job
        supervise       supervisor.py    starts or adopts train.py; cancels, classifies its end
      reconcile         reconciler.py    twice a second: queue what no supervisor holds
    GET /runs/{id}      api/runs.py      the state, derived from files (states.py)
"""
