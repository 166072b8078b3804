"""`gymnasium.make("volar.sim.gymnasium_ids:volar/Lift-v0")`: Gymnasium imports the module, which registers the ids.

The one module whose import does something, because that is Gymnasium's protocol for third-party ids.
"""

from volar.sim.env import register

register()
