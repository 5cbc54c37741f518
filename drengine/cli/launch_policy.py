"""`drengine launch-policy`: what a cloud has to permit so that a launch driver can work there."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from drengine.failover.drivers.ec2.permissions import policy
from drengine.terminal import emit_json

app = typer.Typer(add_completion=False)
_ACCOUNT = re.compile(r"\d{12}")
_ARN = re.compile(r"arn:aws[a-z-]*:(iam|kms):[a-z0-9-]*:\d{12}:(role|key)/[\w+=,.@/-]+")


@app.command()
def launch_policy(
    driver: Annotated[str, typer.Argument(help="The launch driver: ec2.")],
    region: Annotated[str, typer.Option("--region", help="Only in this region.")] = "*",
    account: Annotated[str, typer.Option("--account", help="Only what is this account's.")] = "*",
    role: Annotated[
        list[str] | None, typer.Option("--role", help="ARN of the role of an `instance_profile`; may be repeated.")
    ] = None,
    kms_key: Annotated[
        list[str] | None, typer.Option("--kms-key", help="ARN of a key named by `kms_key`; may be repeated.")
    ] = None,
) -> None:
    """Print the IAM policy with the permissions that the launch driver ec2 needs, and no more."""
    if driver != "ec2":
        raise typer.BadParameter(f"driver {driver!r} needs no permissions of a cloud; ec2 does")
    if account != "*" and not _ACCOUNT.fullmatch(account):
        raise typer.BadParameter(f"{account!r} is no account: 12 digits")
    for arn in (*(role or ()), *(kms_key or ())):
        if not _ARN.fullmatch(arn):
            raise typer.BadParameter(f"{arn!r} is no ARN of a role or key")
    emit_json(policy(region=region, account=account, roles=role or (), keys=kms_key or ()))
