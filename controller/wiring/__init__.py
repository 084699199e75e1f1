"""Puts the product together. The one package that knows the adapters: Ray, SQL, HTTP, the clock.

`cluster.py`: the Ray cluster of a state folder. `versions.py`: fingerprints and launches. `world.py`: this
machine, for the commands. `controller.py`: a whole controller. `direct.py`: past a controller that is dead.
`router.py`: the router without either.

Invariant: nothing here decides anything; every function makes, connects or ends.
"""
