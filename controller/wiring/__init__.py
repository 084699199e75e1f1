"""Composition root: the one package that imports the adapters (Ray, SQL, HTTP, the clock) and connects them.

`cluster.py`: the Ray cluster of a state folder. `launches.py`: fingerprints, launches, preflight of versions.
`environment.py`: this host, for the commands. `controller.py`: the controller process. `direct_rollback.py`:
rollback without a controller. `state_folder.py`: admin token, database URL. `router.py`: the static router.
"""
