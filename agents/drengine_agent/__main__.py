"""`python -m drengine_agent`."""

from drengine_agent.cli.main import run

run()
