"""An app that is killed in the middle of an answer, and goes on where it was when it is started again.

Run a hub first (`scripts/dev`), then this twice: python examples/resume_after_restart.py
The first run stops after a few pieces, as if it had crashed. The second prints the rest.
"""

import asyncio
import json
import os
from pathlib import Path

import headrace

URL = os.environ.get("HEADRACE_URL", "ws://127.0.0.1:8080")
KEPT = Path(os.environ.get("HEADRACE_KEPT", "kept_answer.json"))


def keep(generation: headrace.Generation) -> None:
    """What an app needs to resume: the stream, the cursor, and the text it showed up to there."""
    cursor = generation.cursor or headrace.Cursor(0)
    kept = {"stream": generation.stream, "offset": cursor.offset, "mark": cursor.mark}
    KEPT.write_text(json.dumps(kept | {"text": generation.text_so_far}))


def resume(client: headrace.Client) -> headrace.Generation:
    kept = json.loads(KEPT.read_text())
    print(kept["text"], end="", flush=True)
    cursor = headrace.Cursor(kept["offset"], kept["mark"])
    return client.attach(kept["stream"], after=cursor, text=kept["text"])


async def main(first_run: bool) -> None:
    async with headrace.connect(URL, os.environ.get("HEADRACE_TOKEN")) as client:
        # `continue`: the answer goes on while nobody watches.
        generation = client.generate("Tell me a story.", on_abandon="continue") if first_run else resume(client)
        pieces = 0
        async for event in generation:
            if isinstance(event, headrace.Restarted | headrace.Reset):
                print("\n(starting over)")
            elif isinstance(event, headrace.Text):
                print(event.text, end="", flush=True)
                pieces += 1
            keep(generation)
            if first_run and pieces == 3:
                print("…\nStopped in mid-answer. Start me again.", flush=True)
                os._exit(0)  # no goodbye to the hub: as hard as a crash
    print(f"\nThe text is whole: {generation.verified}")


if __name__ == "__main__":
    try:
        asyncio.run(main(first_run=not KEPT.exists()))
    except headrace.NotFound:
        print("\nThe hub no longer has this answer. Start me again for a new one.")
    KEPT.unlink()
