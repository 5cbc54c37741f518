"""The handler of each kind of step."""

from __future__ import annotations

from drengine.failover.steps.approval import ApprovalStep, WaitStep
from drengine.failover.steps.branches import BranchStep, DropBranchStep, HandBackStep, PromoteStep
from drengine.failover.steps.checks import HttpStep, SqlStep, TcpStep
from drengine.failover.steps.command import CommandStep
from drengine.failover.steps.declare import DeclareStep
from drengine.failover.steps.dns import DnsStep
from drengine.failover.steps.fence import FenceStep
from drengine.failover.steps.notify import NotifyStep
from drengine.failover.steps.points import ChoosePointStep
from drengine.failover.steps.quiesce import QuiesceRecoveredStep, QuiesceSourceStep
from drengine.failover.steps.release import ReleaseStep
from drengine.failover.steps.reversal import PreserveStep, ReverseLastStep, ReverseStep
from drengine.failover.steps.step import StepHandler, StepKind
from drengine.failover.steps.workloads import LaunchStep, StopWorkloadStep


def step_handlers() -> dict[StepKind, StepHandler]:
    """One of each."""
    made: tuple[StepHandler, ...] = (
        DeclareStep(),
        QuiesceSourceStep(),
        FenceStep(),
        ChoosePointStep(),
        BranchStep(),
        PromoteStep(),
        LaunchStep(),
        PreserveStep(),
        ReverseStep(),
        QuiesceRecoveredStep(),
        ReverseLastStep(),
        HandBackStep(),
        ReleaseStep(),
        StopWorkloadStep(),
        DropBranchStep(),
        ApprovalStep(),
        WaitStep(),
        CommandStep(),
        HttpStep(),
        TcpStep(),
        SqlStep(),
        DnsStep(),
        NotifyStep(),
    )
    return {handler.kind: handler for handler in made}
