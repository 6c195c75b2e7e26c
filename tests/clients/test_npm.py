"""Clients for Node: npm's ``openai``, and the AI SDK, which writes ``1.0`` as ``1``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.clients.support import (
    ANSWER,
    CARRIERS,
    ODD_ANSWERS,
    QUESTION,
    ROUNDS,
    RUN_BY,
    Rollout,
    rollout,
)

HERE: Final = Path(__file__).parent / "node"
FOLDER: Final = os.environ.get("SLIME_CLIENTS_NPM", "")

pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="SLIME_CLIENTS_NPM names no directory"),
    pytest.mark.skipif(
        shutil.which("node") is None or shutil.which("npm") is None, reason="needs Node and npm"
    ),
]


@pytest.fixture(scope="module")
def installed() -> Path:
    """The directory with the packages; they are installed unless they are there already."""
    folder = Path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text()
    present = folder / "package.json"
    done = folder / "node_modules" / ".package-lock.json"
    if not done.exists() or not present.exists() or present.read_text() != wanted:
        present.write_text(wanted)
        quiet = ["--no-audit", "--no-fund", "--no-update-notifier"]
        subprocess.run(["npm", "install", *quiet], cwd=folder, check=True, capture_output=True)
    shutil.copy(HERE / "rollout.mjs", folder)
    return folder


async def _play(play: Rollout, folder: Path, name: str) -> dict[str, Any]:
    """What the script says of what it did."""
    asked = {
        "play": name,
        "base_url": play.base_url,
        "api_key": play.api_key,
        "question": QUESTION,
        "rounds": len(ROUNDS),
    }
    done = await trio.run_process(
        ["node", "rollout.mjs"],
        cwd=folder,
        stdin=json.dumps(asked).encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", ["create", "stream", "run_tools", "run_tools_streamed"])
async def test_openai_plays_a_tool_loop(installed: Path, way: str, carrier: str) -> None:
    async with rollout(carrier=carrier) as play:
        said = await _play(play, installed, f"openai/{way}")
        assert [tuple(one) for one in said["run_by"]] == RUN_BY
        assert (said["text"], said["finish"]) == (ANSWER, "stop")
        await play.check()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", ["generate", "stream"])
@pytest.mark.parametrize("provider", ["ai-openai", "ai-compatible"])
async def test_the_ai_sdk_plays_a_tool_loop(
    installed: Path, provider: str, way: str, carrier: str
) -> None:
    async with rollout(carrier=carrier) as play:
        said = await _play(play, installed, f"{provider}/{way}")
        assert [tuple(one) for one in said["run_by"]] == RUN_BY
        assert (said["text"], said["finish"]) == (ANSWER, "stop")
        sampled = sum(len(one.output_ids) for one in play.worker.records)
        assert said["output_tokens"] == sampled
        if provider == "ai-compatible":
            assert said["reasoning"].strip() == "Now I know."
        await play.check()


# Those behind which the AI SDK goes on by itself, because it saw a call.
@pytest.mark.parametrize(
    "odd",
    [
        "arguments that are no JSON",
        "a tool that nobody has",
        "a number beyond what doubles tell apart",
        "a number beyond doubles",
        "a key that comes twice",
    ],
)
@pytest.mark.parametrize("way", ["generate", "stream"])
async def test_the_ai_sdk_goes_on_behind_an_odd_call(installed: Path, way: str, odd: str) -> None:
    async with rollout(ODD_ANSWERS[odd], "Second.") as play:
        await _play(play, installed, f"ai-compatible/{way}")
        # A call that is no JSON is seen as one only while it streams.
        rounds = 2 if way == "stream" or odd != "arguments that are no JSON" else 1
        await play.check(rounds=rounds)


async def test_what_is_refused_is_a_typed_error(installed: Path) -> None:
    async with rollout("Never said.") as play:
        said = await _play(play, installed, "openai/refused")
        both = {"kind": "BadRequestError", "status": 400, "type": "invalid_request_error"}
        both |= {"has_request_id": True}
        wrong = {"code": "missing_required_parameter", "param": "messages[0].tool_call_id"}
        long = {"code": "context_length_exceeded", "param": "messages"}
        assert said["wrong"] == both | wrong
        assert said["long"] == both | long
