"""Which agent can be had: the one file that the site's authority hands out."""

from __future__ import annotations

import asyncio

from drengine.enrolment.client import agent_offered
from drengine.enrolment.handout import remembered_agent
from drengine.enrolment.messages import AgentAnswer
from drengine.enrolment.place import Place
from drengine.failover.config import OrchestratorConfig
from drengine.fleet.errors import UPGRADE_IMPOSSIBLE
from drengine.model.errors import DrengineError


def offered(config: OrchestratorConfig) -> AgentAnswer:
    """What agents would get: asked of the authority by which we are enrolled, else as the CA's directory says. Blocks.

    Raises:
        DrengineError: UPGRADE_IMPOSSIBLE, nothing is handed out; the authority can't be reached.
    """
    certificate = config.broker.certificate
    place = Place(certificate.parent) if certificate else None
    if place is not None and place.authority is not None:
        return asyncio.run(agent_offered(place))
    found = remembered_agent(config.fleet.ca) if config.fleet.ca else None
    if found is None:
        hint = "Enrol the orchestrator, or name the CA's directory as `ca` in its [fleet]."
        raise DrengineError(UPGRADE_IMPOSSIBLE, "no authority is known that hands out agents", hint=hint)
    return found
