"""JSON that is hostile: refused by every endpoint of ours, without a trace in the log."""

from __future__ import annotations

import pytest

from tests.server.harness import embedded_worker, router_with, settled

PATHS = {
    "/generate": "text",
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/retrieve_from_text": "text",
    "/retrieve_from_messages_template": "messages",
    "/add_worker": "url",
    "/remove_worker": "url",
}
DEEP = 50_000
HOSTILE = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in the field": b'{"%b":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep in another field": b'{"other":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "deep and cut off": b'{"%b":' + b"[" * DEEP,
    "deep in a message": b'{"%b":[{"role":"user","content":' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "no UTF-8": b'{"%b":"\xff"}',
    "no UTF-8 in a list": b'{"%b":[{"role":"user","content":"\xff"}]}',
    "half a character": b'{"%b":"\\ud800"}',
    "half a character in a list": b'{"%b":[{"role":"user","content":"\\ud800"}]}',
    "no number": b'{"%b":NaN}',
    "a byte order mark": b'\xef\xbb\xbf{"%b":"x"}',
    "two values": b'{"%b":"x"}{"%b":"y"}',
    "nothing": b"",
    "zeros": b"\0" * 9,
}


@pytest.mark.parametrize("path", PATHS)
async def test_hostile_json_is_the_clients_error(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        for name, body in HOSTILE.items():
            response = await served.client.post(
                path, content=body.replace(b"%b", PATHS[path].encode())
            )
            assert response.status_code == 400, (name, response.text[:200])
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}, name
        await settled(served)
        assert not worker.records
        assert (await served.client.get("/list_workers")).json() == {"urls": [worker.url]}
    assert "Traceback" not in capfd.readouterr().err
