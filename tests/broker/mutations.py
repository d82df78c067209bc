"""`python -m tests.broker.mutations`: break each guard of the scripts once; the model must notice every time.

Some minutes. Ends with status 1 if a broken script passes for a whole one.
"""

from __future__ import annotations

import sys
import time

from hypothesis import Phase

from hub.broker.embedded import EmbeddedRedis
from hub.broker.log import SCRIPTS
from tests.broker.test_scripts_model import check

#: Script, what stands there, and what it becomes.
MUTATIONS = [
    ("create", "if state then return {'EXISTS', state} end", ""),
    ("create", "redis.call('DEL', KEYS[2])", ""),
    ("create", "redis.call('PEXPIRE', KEYS[2], ARGV[7])", ""),
    ("claim", "if m[1] == 'done' then return {'TERMINAL'} end", ""),
    ("claim", "if tonumber(m[4]) > now then return {'LEASED'} end", ""),
    ("claim", "if m[2] ~= ARGV[1] then", "if true then"),
    ("claim", "then return {'FENCED'} end", "then end"),
    ("claim", "if tonumber(start) < first then", "if true then"),
    ("claim", "losses = losses + 1", ""),
    ("claim", "tonumber(m[8]) + 1", "m[8]"),
    ("claim", "'owner', ARGV[2],", ""),
    ("claim", "for i = 1, 3 do", "for i = 1, 2 do"),
    ("append", "if not m[1] then return {'GONE', 0} end", ""),
    ("append", "if m[1] ~= ARGV[1] then return {'FENCED', 0} end", ""),
    ("append", "if last <= top then return {'DUP', tonumber(m[3])} end", ""),
    ("append", "if m[2] == 'done' then return {'TERMINAL', 0} end", ""),
    ("append", "if first > top + 1 then return {'GAP', top} end", ""),
    ("append", "for offset = top + 1, last do", "for offset = math.max(first, top + 1), last + 1 do"),
    ("append", "if top == 0 then", "if false then"),
    ("append", "'shown', 1, 'barren', 0", "'shown', 1"),
    ("append", "'shown', 0)", "'shown', 1)"),
    ("append", "'state', 'done', ", ""),
    ("append", "'owner', '', 'lease', 0", "'lease', 0"),
    ("append", "if ARGV[3] ~= 'k' then", "if true then"),
    ("append", "redis.call('PEXPIRE', KEYS[2], ARGV[5])", ""),
    ("append", "redis.call('DEL', KEYS[3])", ""),
    ("append", "elseif ARGV[4] ~= '0' then", "elseif false then"),
    ("renew", "if m[1] ~= ARGV[1] then return {'FENCED'} end", ""),
    ("renew", "if m[2] == 'done' then return {'TERMINAL'} end", ""),
    ("renew", "'owner', ARGV[2], ", ""),
    ("cancel", "if not m[1] or (m[1] ~= ARGV[1] and ARGV[2] ~= '1') then", "if not m[1] then"),
    ("cancel", "if m[2] == 'done' then return {'DONE'} end", ""),
    ("cancel", "if m[3] ~= '0' then", "if false then"),
    ("cancel", "redis.call('HSET', KEYS[1], 'cancel', 1)\n", ""),
    ("cancel", "redis.call('HDEL', KEYS[1], 'request')", ""),
    ("cancel", "redis.call('DEL', KEYS[3])", ""),
    ("attach", "and m[2] ~= 'done' then", "then"),
    ("attach", "(m[1] ~= ARGV[1] and ARGV[2] ~= '1')", "m[1] ~= ARGV[1]"),
    ("attach", "redis.call('PEXPIRE', KEYS[3], redis.call('PTTL', KEYS[1]))", ""),
    ("attach", "math.min(demand, top + ARGV[5])", "demand"),
    ("leave", "'HDEL'", "'HEXISTS'"),
    ("release", "if m[1] ~= ARGV[1] then return {'FENCED'} end", ""),
    ("release", "if m[2] == 'done' then return {'TERMINAL'} end", ""),
    ("release", "'owner', '', ", ""),
    ("remember", "if m[1] ~= ARGV[1] then return {'FENCED'} end", ""),
    ("remember", "if m[2] == 'done' then return {'TERMINAL'} end", ""),
    ("remember", "'HDEL'", "'HEXISTS'"),
    ("append", "redis.call('HDEL', KEYS[1], 'underway')", ""),
    ("abandon", "(m[1] ~= ARGV[1] and ARGV[2] ~= '1')", "false"),
    ("abandon", "if not m[1] or", "if m[1] and"),
    ("reserve", "if stored then return stored end", ""),
]


def notices(url: str, script: str, before: str, after: str) -> bool:
    text = SCRIPTS[script]
    assert before in text, f"{script}.lua does not say {before!r} any more"
    SCRIPTS[script] = text.replace(before, after, 1)
    try:
        check(url, examples=300, phases=[Phase.generate])
    except Exception:  # whatever it is, it was noticed
        return True
    finally:
        SCRIPTS[script] = text
    return False


def main() -> int:
    missed = 0
    with EmbeddedRedis() as server:
        for script, before, after in MUTATIONS:
            began = time.monotonic()
            is_noticed = notices(server.url, script, before, after)
            missed += not is_noticed
            verdict = "noticed" if is_noticed else "MISSED "
            print(f"{verdict} {time.monotonic() - began:5.1f} s  {script}: {before!r} → {after!r}", flush=True)  # noqa: T201
    print(f"{len(MUTATIONS)} mutations, {missed} missed")  # noqa: T201
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
