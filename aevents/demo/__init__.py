"""`python -m aevents.demo`: three Django services that tell each other what happens.

accounts, orders, payments and devops are the services and what they share: read and copy these.
The rest runs them: `run` (begin here) plays the scenes of `story` with a `fleet` of processes, each
`service` reports its `facts` through its `reporter`, `watch` compares them with the story and
`screen` shows them. `crash` is another play with the same stage: `--crash` kills the processes.
"""
