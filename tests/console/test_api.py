"""Everything that a program does with the orchestrator, over HTTP."""

from __future__ import annotations

import pytest

from drengine.failover import orders as orders_module
from tests.console.rig import ASKING, RUNBOOK, Api


def test_a_drill_from_its_runbook_to_its_report(api: Api) -> None:
    saved = api.do("PUT", "/runbooks/shop", {"text": ASKING})
    assert saved["valid"] is True
    plan = api.get("/runbooks/shop/plan?mode=drill")
    assert [step["id"] for step in plan["steps"]][:3] == ["declare", "preflight", "all.before.1"]
    assert plan["points"]["shop"]["point"].startswith("1-")
    assert api.get("/runs") == []

    run = api.do("POST", "/runs", {"mode": "drill", "runbook": "shop"})["run"]
    waiting = api.until(run, lambda found: found["waiting_for"])
    assert waiting["waiting_for"] == ["all.before.1"]
    assert (waiting["started_by"], waiting["started_proof"][:6]) == ("bob", "login:")
    held = api.ask("POST", "/runs", {"mode": "drill", "runbook": "shop"})
    assert (held.status, held.json["id"]) == (409, "run-active")
    refused = api.approve(run, "eve")
    assert (refused.status, refused.json["id"]) == (422, "bad-approval")
    approved = api.approve(run, note="go").json
    assert (approved["by"], approved["step"], approved["note"]) == ("ann", "all.before.1", "go")
    assert (approved["digest"], approved["roles"]) == (waiting["digest"], ["approver", "operator"])

    done = api.finished(run)
    assert (done["state"], done["outcome"]) == ("finished", "completed")
    assert done["rto_seconds"] > 0
    assert {step["status"] for step in done["steps"]} == {"done"}
    assert api.get(f"/runs/{run}/journal?after=3")[0]["seq"] == 4
    assert [each["kind"] for each in api.get(f"/runs/{run}/requests")] == ["approve"]
    report = api.get(f"/reports/{run}")
    assert report["verdict"] == "Drill of shop passed"
    page = api.ask("GET", f"/reports/{run}/page", by=None)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"Drill of shop passed" in page.body
    api.world.judge.verdict()


def test_a_failover_is_committed_and_one_that_was_not_is_rolled_back(api: Api) -> None:
    api.do("PUT", "/runbooks/shop", {"text": RUNBOOK})
    first = api.do("POST", "/runs", {"mode": "failover", "runbook": "shop"})["run"]
    assert api.finished(first)["outcome"] == "completed"
    assert api.get("/sources") == [{"name": "shop", "generation": 2, "active_branch": 2}]
    assert [each["role"] for each in api.get("/sources/shop/branches")] == ["trunk", "promoted"]
    back = api.do("POST", f"/runs/{first}/rollback", {})
    assert back["run"] == first
    undone = api.until(first, lambda found: found["outcome"] == "rolled-back")
    assert undone["state"] == "finished"
    again = api.do("POST", "/runs", {"mode": "failover", "runbook": "shop"})["run"]
    assert api.finished(again)["outcome"] == "completed"
    assert api.do("POST", f"/runs/{again}/commit", {})["reason"] == "committed"
    refused = api.ask("POST", f"/runs/{again}/rollback", {"yes": True})
    assert (refused.status, refused.json["id"]) == (409, "run-state")
    assert [each["run"] for each in api.get("/runs?mode=failover&limit=1")] == [again]
    api.world.judge.verdict()


def test_writes_of_the_recovered_side_are_not_lost_by_accident(api: Api) -> None:
    api.do("PUT", "/runbooks/shop", {"text": RUNBOOK})
    run = api.do("POST", "/runs", {"mode": "failover", "runbook": "shop"})["run"]
    api.finished(run)
    (instance,) = api.world.driver.running
    api.world.driver.write(instance, 3, b"r" * 4096)
    refused = api.ask("POST", f"/runs/{run}/rollback", {})
    assert (refused.status, refused.json["id"]) == (409, "would-lose")
    assert api.get(f"/runs/{run}/requests") == []
    api.do("POST", f"/runs/{run}/rollback", {"yes": True})
    api.until(run, lambda found: found["outcome"] == "rolled-back")


def test_an_abort_ends_a_drill_and_cleans_it_up(api: Api) -> None:
    api.do("PUT", "/runbooks/shop", {"text": RUNBOOK})
    run = api.do("POST", "/runs", {"mode": "drill", "runbook": "shop", "hold": True})["run"]
    api.until(run, lambda found: found["waiting_for"])
    assert api.world.driver.running
    api.do("POST", f"/runs/{run}/abort", {"note": "enough"})
    assert api.finished(run)["outcome"] == "aborted"
    assert not api.world.driver.running


def test_points_are_listed_newest_first(api: Api) -> None:
    for block in range(3):
        api.world.sources["shop"].write(block, b"x" * 4096)
        api.world.sources["shop"].ship(f"cut {block}")
    points = api.get("/sources/shop/points?limit=2")
    assert [each["label"] for each in points] == ["cut 2", "cut 1"]
    assert api.get("/sources/shop/points/latest")["id"] == points[0]["id"]
    assert api.get("/sources/shop/points/cut%201")["id"] == points[1]["id"]
    for path, status, id in (
        ("/sources/shop/points/1-99999999", 404, "unknown-point"),
        ("/sources/shop/points/yesterday", 404, "unknown-point"),
        ("/sources/shop/points/before:yesterday", 422, "bad-point"),
        ("/sources/nobody/points", 404, "unknown-source"),
        ("/sources/nobody/branches", 404, "unknown-source"),
        ("/runs/20260101T000000-x-0000", 404, "unknown-run"),
        ("/runs/20260101T000000-x-0000/journal", 404, "unknown-run"),
        ("/runbooks/nobody", 404, "unknown-runbook"),
        ("/reports/nobody", 404, "unknown-run"),
        ("/nothing", 404, "bad-request"),
    ):
        answer = api.ask("GET", path)
        assert (answer.status, answer.json["id"]) == (status, id), path
        assert answer.json["hint"]


def test_a_runbook_with_mistakes_is_not_kept(api: Api) -> None:
    bad = RUNBOOK.replace("driver:", "drivr:")
    answer = api.do("POST", "/runbooks/validate", {"text": bad})
    assert answer["valid"] is False
    assert {each["id"] for each in answer["findings"]} == {"unknown-key", "missing-key"}
    refused = api.ask("PUT", "/runbooks/shop", {"text": bad})
    assert (refused.status, refused.json["id"]) == (422, "bad-runbook")
    assert refused.json["message"].startswith("shop:5:18: error ")
    other = api.ask("PUT", "/runbooks/mail", {"text": RUNBOOK})
    assert "own name" in other.json["message"]
    assert api.get("/runbooks") == []


def test_what_fails_unexpectedly_is_an_answer_and_no_traceback(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(orders_module, "party_answer", broken)
    monkeypatch.setattr(type(api.engine.registry), "parties", lambda self: [1])
    answer = api.ask("GET", "/parties")
    assert (answer.status, answer.json["id"]) == (500, "internal")
    assert b"secret detail" not in answer.body
    assert b"Traceback" not in answer.body
    assert api.get("/health")["version"]
