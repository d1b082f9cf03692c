import threading

from flowodom.inbox import Inbox


def drain(inbox: Inbox) -> list[tuple[str, object]]:
    items = []
    while (item := inbox.take(0)) is not None:
        items.append((item.topic, item.message))
    return items


def test_messages_come_out_in_the_order_they_went_in() -> None:
    inbox = Inbox(3)
    for i, topic in enumerate(("camera_info", "image", "depth", "image")):
        inbox.put(topic, i, 0)
    assert [message for _, message in drain(inbox)] == [0, 1, 2, 3]
    assert inbox.take_dropped() == 0


def test_beyond_the_backlog_only_the_newest_images_stay_and_the_others_are_counted() -> None:
    inbox = Inbox(3)
    for i in range(4):
        inbox.put("camera_info", i, 0)
        inbox.put("depth", i, 0)
        inbox.put("image", i, 0)
    assert drain(inbox) == [
        ("camera_info", 0), ("camera_info", 1), ("camera_info", 2), ("camera_info", 3), ("depth", 3), ("image", 3),
    ]  # fmt: skip
    assert inbox.take_dropped() == 3
    assert inbox.take_dropped() == 0


def test_a_closed_inbox_can_still_be_emptied() -> None:
    inbox = Inbox(3)
    inbox.put("image", 1, 0)
    inbox.close()
    inbox.put("image", 2, 0)
    assert not inbox.closed
    assert drain(inbox) == [("image", 1)]
    assert inbox.closed
    assert inbox.take() is None


def test_a_waiting_taker_is_woken() -> None:
    inbox = Inbox(3)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(10)))
    thread.start()
    inbox.put("image", "picture", 5)
    thread.join(10)
    assert taken == [("image", "picture", 5)]


def test_clearing_forgets_what_waits() -> None:
    inbox = Inbox(3)
    inbox.put("image", 1, 0)
    inbox.clear()
    assert inbox.take(0) is None
