"""What `rushgate doctor` says of the gateways and callers of a deployment that is no stack of `rushgate up`."""

from core.desk.access_books import AccessBooks
from core.desk.channels import ChannelDesk, ChannelSpec, Rotation
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.registry import SignOfLife, Work
from ops.desk import Place
from ops.doctor_store import store_checks

NOBODY = ("warning", "none has a key, so nobody can send orders: `rushgate channel add NAME`")


async def said(settings: Settings, name: str) -> tuple[str, str]:
    """Verdict and words of a check, by its name."""
    [found] = [c for c in await store_checks(Place(settings)) if c.name == name]
    return found.verdict, found.words


async def test_channels_of_settings_and_of_the_ledger_may_send_orders(
    settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    settings = settings.with_values(channel_keys={})
    assert await said(settings, "channels") == NOBODY
    own = settings.with_values(channel_keys={"web": "w" * 16, "web.2": "x" * 16})
    assert await said(own, "channels") == ("ok", "1 with a key: web")
    channels = ChannelDesk(AccessBooks(store, ledger), ())
    await channels.add(ChannelSpec("app"))
    assert await said(settings, "channels") == ("ok", "1 with a key: app")
    assert await said(own, "channels") == ("ok", "2 with a key: app, web")
    await channels.revoke("app", None)
    assert await said(settings, "channels") == NOBODY


async def test_channel_whose_keys_are_over_may_not(settings: Settings, store: SharedConnection, ledger: Pool) -> None:
    settings = settings.with_values(channel_keys={})
    channels = ChannelDesk(AccessBooks(store, ledger), ())
    first = await channels.add(ChannelSpec("app"))
    second = await channels.rotate("app", Rotation(keep_s=0))
    assert await said(settings, "channels") == ("ok", "1 with a key: app")
    await channels.revoke("app", second.key_id)
    assert first.key_id != second.key_id
    assert await said(settings, "channels") == NOBODY


async def test_gateways_are_known_by_their_signs_of_life(settings: Settings, store: SharedConnection) -> None:
    assert await said(settings, "gateway") == ("warning", "none is at work: `rushgate gateway`")
    signs = [SignOfLife(settings.store_url, "gateway", f"gateway-{n}", lambda: Work(0.0)) for n in range(2)]
    try:
        for sign in signs:
            await sign.say()
        assert await said(settings, "gateway") == ("ok", "2 at work")
    finally:
        for sign in signs:
            await sign.stop()
    assert await said(settings, "gateway") == ("warning", "none is at work: `rushgate gateway`")


async def test_ledger_worker_without_work_is_known_by_its_sign_of_life(
    settings: Settings, store: SharedConnection
) -> None:
    """Redis 7.0 counts as idle who asks the intake in vain."""
    assert (await said(settings, "ledger worker"))[1] == "none is at work: `rushgate worker ledger`"
    sign = SignOfLife(settings.store_url, "ledger", "ledger-1", lambda: Work(0.0))
    try:
        await sign.say()
        assert await said(settings, "ledger worker") == ("ok", "1 at work")
    finally:
        await sign.stop()
