"""The preflight: one list of checks, for all who want to know before a run whether it could go through.

`drengine ready`, `plan`, `runbook validate`, the step of every run that comes before its first act, and the
orchestrator's watch all ask `Preflight`. Looking changes nothing, and ends within PREFLIGHT_SECONDS_MAX.
"""
