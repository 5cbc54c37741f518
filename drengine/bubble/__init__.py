"""The network of a drill on one host: recovered servers see each other in it, and nothing else.

A *bubble* is a network namespace with a bridge, which stands in for what is around the servers at their site. It has
the addresses of their gateways and name servers, answers names and DHCP, and no link leads out of it.
"""

from drengine.bubble.bubble import BRIDGE, Bubble, bubble_faults, sweep_bubbles
from drengine.bubble.errors import BUBBLE_FAILED

__all__ = ["BRIDGE", "BUBBLE_FAILED", "Bubble", "bubble_faults", "sweep_bubbles"]
