"""The `drengine` program: which commands there are.

A new command is a module with a typer `app`, and a line here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from drengine.terminal import Command, Group, lazy_app, main

COMMANDS: Mapping[str, Command | Group] = {
    "status": Command(
        "drengine.cli.status",
        "Show a store's sources, their newest points and any damage; works beside a running target and without one.",
    ),
    "points": Command(
        "drengine.cli.points",
        "List recovery points, oldest first: when, how each is known to be consistent, verified, lag, pinned.",
    ),
    "inventory": Command(
        "drengine.cli.inventory",
        "Show what a source's server is made of, as its agent told last; also when the server is gone.",
    ),
    "export": Command(
        "drengine.cli.export",
        "Serve the volumes of a point over NBD until interrupted; read-only unless --writable or --branch.",
    ),
    "restore": Command(
        "drengine.cli.restore",
        "Write a point's volumes to raw files or devices: sparse, in parallel, resumable, read back and compared.",
    ),
    "verify": Command(
        "drengine.cli.verify",
        "Read everything a point shows, recompute every hash, and remember the result with the point.",
    ),
    "scrub": Command(
        "drengine.cli.scrub",
        "Re-read and re-hash every segment; damage is recorded, so that the source can be asked for it again.",
    ),
    "rebuild": Command(
        "drengine.cli.rebuild",
        "Make a lost or damaged catalogue anew; the old one is kept aside. Stop the target first.",
    ),
    "mirror": Command(
        "drengine.cli.mirror",
        "Keep a second copy of a store at another place, which recovers alone: once, or with --follow continuously.",
    ),
    "pin": Command("drengine.cli.pins", "Keep a point: retention leaves it alone until it is unpinned."),
    "unpin": Command("drengine.cli.pins", "Let retention have a point again."),
    "lock": Command(
        "drengine.cli.lock",
        "Lock a point: nobody, no role and no command can remove it before its time. A lock can only be made longer.",
    ),
    "branches": Command("drengine.cli.branches", "List a source's branches, or close one that is no longer needed."),
    "source": Group(
        "The sources that a store knows.",
        {
            "list": Command("drengine.cli.source", "List the sources of a store, and what each uses of what it may."),
            "add": Command(
                "drengine.cli.source",
                "Take in a source before its agent comes: it is known, and has an allowance of its own, from then on.",
            ),
        },
    ),
    "grant": Group(
        "Who may use a branch or a point over NBD, or come home, beside what runs allow by themselves.",
        {
            "list": Command("drengine.cli.grant", "List the grants that live, oldest first."),
            "give": Command(
                "drengine.cli.grant",
                "Allow a party something until the time is over, or, without --to, whoever shows the capability "
                "that is printed.",
            ),
            "take": Command("drengine.cli.grant", "Take a grant back; what is open by it ends within seconds."),
        },
    ),
    "store": Group(
        "Stores that several targets share: a catalogue in PostgreSQL, segments in a storage that all of them reach.",
        {
            "create": Command(
                "drengine.cli.store.create",
                "Make an empty store; with a catalogue in PostgreSQL and a storage that hosts share, others may join "
                "it.",
            ),
            "join": Command(
                "drengine.cli.store.join",
                "Make a directory of this host a seat of a store that is there already; nothing of the store changes.",
            ),
            "check": Command(
                "drengine.cli.store.objects",
                "Try everything that a store needs of a bucket; of a store, also whether its objects are all there.",
            ),
            "place": Command(
                "drengine.cli.store.objects",
                "Correct where a store's objects are: another endpoint or region, or a bucket that has all of them.",
            ),
        },
    ),
    "target": Group(
        "Receive, keep and serve replicas.",
        {
            "run": Command(
                "drengine.cli.target.run",
                "Run the daemon in the foreground until SIGTERM.",
            ),
            "init": Command(
                "drengine.cli.target.init",
                "Make an empty store, once, in a missing or empty directory; the target itself never makes one.",
            ),
            "drain": Command(
                "drengine.cli.target.drain",
                "Have a target give its sources to the others, without a gap, and take no more until --undo.",
            ),
            "forget": Command(
                "drengine.cli.target.drain",
                "Take a target that will not come back off the list, and its alerts with it.",
            ),
            "check-config": Command(
                "drengine.cli.target.config",
                "Check a configuration file, with the certificates it names, without starting anything.",
            ),
            "example-config": Command(
                "drengine.cli.target.config", "Print a commented configuration file with every option."
            ),
        },
    ),
    "targets": Command(
        "drengine.cli.targets",
        "Show the targets that share a store: where agents reach them, their sources, when each was last seen.",
    ),
    "convert": Command(
        "drengine.cli.convert",
        "Make the disks of a branch boot on another machine: drivers, names, boot loader, serial console, network.",
    ),
    "hydrate": Command(
        "drengine.cli.hydrate",
        "Serve a disk from a local copy that fills in the background; writes go to the remote disk too, first.",
    ),
    "runbook": Group(
        "Runbooks: write one, find what is wrong with it, list those that were run.",
        {
            "init": Command("drengine.cli.runbook.init", "Write a runbook for the sources in the store."),
            "validate": Command(
                "drengine.cli.runbook.validate",
                "Say what is wrong with a runbook: each mistake with line, column and hint.",
            ),
            "schema": Command(
                "drengine.cli.runbook.schema", "Print the JSON Schema of runbooks, by which editors complete them."
            ),
            "list": Command(
                "drengine.cli.runbook.kept", "List the runbooks of which runs were begun, each in its newest version."
            ),
            "show": Command("drengine.cli.runbook.kept", "Print a runbook as it was run."),
        },
    ),
    "launch-policy": Command(
        "drengine.cli.launch_policy",
        "Print the IAM policy with the permissions that the launch driver ec2 needs, and no more.",
    ),
    "reports": Group(
        "Reports of runs: list them, read them, hand them on.",
        {
            "list": Command("drengine.cli.reports.listing", "List the reports that are kept, newest first."),
            "export": Command(
                "drengine.cli.reports.export",
                "Hand on the report of a run as it stands now; where the registry can't tell any more, as it was kept.",
            ),
        },
    ),
    "ready": Command(
        "drengine.cli.ready",
        "Look whether everything is there that a run would need: hosts, programs, disks, fences, points, people.",
    ),
    "plan": Command(
        "drengine.cli.plan",
        "Print step by step what a run would do now, with the points it would choose and how long it would take.",
    ),
    "drill": Command(
        "drengine.cli.begin",
        "Rehearse a recovery: launch in isolation from a branch of a point, check, measure, clean up.",
    ),
    "failover": Command(
        "drengine.cli.begin",
        "Bring the runbook's sources back here: fence them, promote a point under a new generation, launch, check.",
    ),
    "migrate": Command(
        "drengine.cli.begin",
        "Move the runbook's sources here without losing anything: stop them, take their last point, promote it.",
    ),
    "failback": Command(
        "drengine.cli.begin",
        "Bring the sources home: ship what differs to their disks while the recovered side serves, then switch over.",
    ),
    "reprotect": Command(
        "drengine.cli.begin",
        "Ship what differs back to the sources' disks, without switching over: they are ready for a failback.",
    ),
    "runs": Command(
        "drengine.cli.runs", "List runs, newest first: what for, how far, how they ended, what was measured."
    ),
    "run": Group(
        "One run: how it is, and going on with it.",
        {
            "show": Command(
                "drengine.cli.runs",
                "Show a run: its end or what it waits for, what was measured, and each step with its result.",
            ),
            "resume": Command(
                "drengine.cli.orders",
                "Go on with a run that was interrupted, or try again what failed in one that stopped.",
            ),
        },
    ),
    "approve": Command(
        "drengine.cli.orders", "Approve a step that waits for it. Whoever executes the run goes on at once."
    ),
    "abort": Command(
        "drengine.cli.orders",
        "End a run where it is: nothing new begins, a drill is cleaned up. A failover is not undone (see rollback).",
    ),
    "commit": Command(
        "drengine.cli.orders",
        "Accept a completed failover: it can't be rolled back any more; the way home is a failback.",
    ),
    "rollback": Command(
        "drengine.cli.orders",
        "Undo a failover, or a failback before its switch: stop what was launched and put the sources in charge again.",
    ),
    "fleet": Group(
        "All sources together: how they stand, their policy, their agents' versions.",
        {
            "show": Command(
                "drengine.cli.fleet.show",
                "Show every source: expected, joined or silent, version, lag, tracker, newest point, certificate.",
            ),
            "upgrade": Command(
                "drengine.cli.fleet.upgrade",
                "Have agents fetch and install a new version, ring by ring; it stops at one that is not well.",
            ),
            "retire": Command(
                "drengine.cli.fleet.retire",
                "End a source: its identity is revoked, its metrics and alerts end, its points go by retention.",
            ),
            "policy": Group(
                "Settings that are decided here for sources, and taken by their agents at once.",
                {
                    "show": Command(
                        "drengine.cli.fleet.policy", "Show what was decided, by name or pattern of sources."
                    ),
                    "set": Command(
                        "drengine.cli.fleet.policy", "Decide settings for a source, or for all that a pattern means."
                    ),
                    "unset": Command(
                        "drengine.cli.fleet.policy", "Take back what was decided; agents go by their own files again."
                    ),
                },
                default="show",
            ),
        },
        default="show",
    ),
    "orchestrator": Group(
        "Watch the parties and drill on schedule, when nobody types a command.",
        {
            "run": Command(
                "drengine.cli.orchestrator.run",
                "Run the daemon in the foreground until SIGTERM. Failovers need it not: each command works without it.",
            ),
            "check-config": Command(
                "drengine.cli.orchestrator.config",
                "Check a configuration file, with the certificates it names, without starting anything.",
            ),
            "example-config": Command(
                "drengine.cli.orchestrator.config", "Print a commented configuration file with every option."
            ),
        },
    ),
    "ca": Group(
        "The site's certificate authority: who is who.",
        {
            "init": Command("drengine.cli.ca", "Make a CA for a site, in a missing or empty directory."),
            "issue": Command(
                "drengine.cli.ca",
                "Issue a certificate that says who a party is, for its own request or with a key made here.",
            ),
            "renew": Command(
                "drengine.cli.ca",
                "Issue again what a party has, with a new key; the old certificate stays valid until it expires.",
            ),
            "revoke": Command("drengine.cli.ca", "Revoke a party's certificates, or one, and write the CRL."),
            "list": Command(
                "drengine.cli.ca", "List the certificates that were issued: whose, until when, revoked or not."
            ),
            "crl": Command("drengine.cli.ca", "Sign the list of what is revoked (CRL, in PEM) anew, and print it."),
            "serve": Command(
                "drengine.cli.ca_serve",
                "Let hosts enrol with tokens, renew by themselves and hear of revocations; in the foreground, until "
                "SIGTERM.",
            ),
            "rollover": Command(
                "drengine.cli.ca_rollover",
                "Replace the CA, a step at each call: parties trust both; the new one issues; the old one goes.",
            ),
        },
    ),
    "token": Group(
        "Who may join.",
        {
            "create": Command(
                "drengine.cli.token",
                "Make a token and print it, once: whoever has it may enrol a host under its role and names.",
            ),
            "list": Command("drengine.cli.token", "List tokens: for whom, how often used, until when."),
            "revoke": Command(
                "drengine.cli.token",
                "Let nobody join with a token any more; certificates got with it stay valid.",
            ),
        },
    ),
    "join-command": Command(
        "drengine.cli.join_command",
        "Print one line for a server: typed there as root, it fetches the agent, checks the host, enrols and "
        "protects it.",
    ),
    "enrol": Command(
        "drengine.cli.enrol",
        "Get a certificate for this target, orchestrator or broker by a token; the key is made here and stays here.",
    ),
    "identities": Command(
        "drengine.cli.identities",
        "Show who has a certificate: role, until when, when last heard by the authority, revoked or not.",
    ),
    "audit": Group(
        "Who did what: entries chained by their hashes, so that whoever changes one is found out.",
        {
            "show": Command("drengine.cli.audit.show", "Show who did what, oldest first."),
            "export": Command(
                "drengine.cli.audit.show",
                "Write entries as lines of JSON, each with its hash, for an archive or another program.",
            ),
            "verify": Command(
                "drengine.cli.audit.verify",
                "Check that each entry follows the one before, and is the one that anchors know.",
            ),
        },
    ),
    "keys": Group(
        "Encryption of a store at rest: its keys, and how far it is encrypted.",
        {
            "generate": Command(
                "drengine.cli.keys",
                "Make a key-encryption key in a new file that only its owner may read.",
            ),
            "init": Command(
                "drengine.cli.keys",
                "Encrypt what is written to a store from now on; compaction encrypts what is there.",
            ),
            "status": Command("drengine.cli.keys", "Show how far a store is encrypted, and under which key."),
            "list": Command("drengine.cli.keys", "List the data keys of each source: made when, in use or forgotten."),
            "rotate": Command("drengine.cli.keys", "Give a source a new data key for what is written from now on."),
            "rewrap": Command("drengine.cli.keys", "Wrap all data keys with the newest key-encryption key."),
            "forget": Command("drengine.cli.keys", "Erase a source: forget its data keys for good."),
        },
    ),
    "user": Group(
        "Accounts of people and programs, on the orchestrator's host.",
        {
            "add": Command(
                "drengine.cli.people.accounts",
                "Make an account. A user of this host of the same name has its roles, too.",
            ),
            "remove": Command(
                "drengine.cli.people.accounts", "Remove an account; its tokens count no more from this moment on."
            ),
            "list": Command(
                "drengine.cli.people.accounts", "List the accounts with their roles, and the tokens that count."
            ),
            "password": Command(
                "drengine.cli.people.accounts", "Set an account's password; its logins end, tokens of programs stay."
            ),
            "role": Command("drengine.cli.people.accounts", "Give an account other roles, at once."),
            "token": Group(
                "Tokens of programs.",
                {
                    "create": Command(
                        "drengine.cli.people.accounts", "Make a token for a program, and print it: it is shown once."
                    ),
                    "revoke": Command(
                        "drengine.cli.people.accounts", "End a token: it counts no more from this moment on."
                    ),
                },
            ),
        },
    ),
    "login": Command(
        "drengine.cli.people.login",
        "Sign in: commands act as this account until the token is over, or `drengine logout`.",
    ),
    "logout": Command(
        "drengine.cli.people.login",
        "Sign out: the token counts no more, and commands act as the user of this host again.",
    ),
    "monitoring": Group(
        "What Prometheus and Grafana need, and notices to people.",
        {
            "init": Command(
                "drengine.cli.monitoring.init",
                "Write what Prometheus and Grafana need for this site: scrape configuration, rules, dashboards.",
            ),
            "notify": Command(
                "drengine.cli.monitoring.trial",
                "Send a trial notice to each place of [notifications], and say whether it was taken.",
            ),
        },
    ),
    "broker": Group(
        "The message broker: the one that comes with drengine, or Mosquitto.",
        {
            "run": Command(
                "drengine.cli.broker.run",
                "Run an MQTT broker until interrupted, which keeps parties apart by their identities. Nothing is kept "
                "on disk.",
            ),
            "config": Command(
                "drengine.cli.broker.config",
                "Write Mosquitto's configuration and ACL for this site, on the broker's host.",
            ),
            "follow": Command(
                "drengine.cli.broker.follow",
                "Keep the broker's certificate, CRL and ACL as the authority says; in the foreground, until SIGTERM.",
            ),
        },
    ),
}

app = lazy_app(
    "drengine",
    "Recover servers at the edge: points, exports, restores, and the target that keeps them.",
    COMMANDS,
)


def run() -> None:
    """Entry point of the `drengine` command."""
    sys.exit(main(app, sys.argv[1:]))


if __name__ == "__main__":
    run()
