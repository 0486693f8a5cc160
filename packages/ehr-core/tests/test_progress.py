import io
import time

from ehr_core.progress import Progress, track


def test_quick_work_prints_nothing():
    stream = io.StringIO()
    bar = Progress("quick", 3, stream=stream)
    for _ in range(3):
        bar.update()
    bar.close()
    assert stream.getvalue() == ""


def test_work_over_a_second_shows_share_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    bar = Progress("slow", 4, "steps", stream=stream)
    now[0] += 2
    bar.update(2)
    assert "slow: ##########" in stream.getvalue()
    assert "50% of 4 steps  2 s  2 s left" in stream.getvalue()


def test_tracking_yields_every_item():
    assert list(track(range(5), "items", 5)) == [0, 1, 2, 3, 4]
