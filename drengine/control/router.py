"""What the embedded broker does with packets: who is there, who hears what, what is retained. No I/O of its own."""

from __future__ import annotations

import logging
from collections import Counter

from drengine.control.clients import Client
from drengine.control.packets import (
    Disconnect,
    Kind,
    Packet,
    PacketError,
    Ping,
    Puback,
    Publish,
    Reason,
    Subscribe,
    Unsubscribe,
    pingresp,
    puback,
    suback,
)
from drengine.control.rights import matches, may_publish, may_subscribe
from drengine.model.clock import Clock

log = logging.getLogger("drengine.control.broker")

CLIENTS_MAX = 1024
CLIENTS_PER_IDENTITY_MAX = 16
FILTERS_MAX = 32
RETAINED_MAX = 32 << 10
LOG_SECONDS = 10.0


class Router:
    """The clients of one broker. Belongs to one thread.

    Attributes:
        clients: that are there.
        refused: how many connections, messages and subscriptions were refused.
    """

    def __init__(self, clock: Clock) -> None:
        self.clients: dict[Client, None] = {}
        self.refused = 0
        self._retained: dict[str, Publish] = {}
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def admit(self, client: Client) -> Reason:
        """Let a client in, in place of one of the same identity and client id; or why not."""
        will = client.hello.will
        if will is not None and not may_publish(client.who, will.topic):
            self.refuse(f"{client.who} may not have a will on {will.topic[:120]!r}")
            return Reason.NOT_AUTHORIZED
        for other in list(self.clients):
            if (other.who, other.hello.client_id) == (client.who, client.hello.client_id):
                self.leave(other)
                other.end(Reason.TAKEN_OVER)
        shares = Counter(each.who for each in self.clients)
        if shares[client.who] >= CLIENTS_PER_IDENTITY_MAX or len(self.clients) >= CLIENTS_MAX:
            self.refuse(f"{client.who} has {shares[client.who]} connections, of {len(self.clients)}")
            return Reason.QUOTA
        client.will = will
        self.clients[client] = None
        return Reason.SUCCESS

    def leave(self, client: Client) -> None:
        """A client is gone; its will is published if it has one still."""
        if client in self.clients:
            del self.clients[client]
            if client.will is not None:
                self._publish(client, client.will)

    def take(self, client: Client, packet: Packet) -> bool:
        """Do what a client asks; False when it leaves.

        Raises:
            PacketError: it asks for what it may not at this moment.
        """
        match packet:
            case Publish():
                reason = self._publish(client, packet)
                if packet.qos:
                    client.send(puback(packet.number, reason))
            case Puback():
                client.acknowledged(packet.number)
            case Subscribe():
                self._subscribe(client, packet)
            case Unsubscribe():
                found = [client.filters.pop(each, None) for each in packet.filters]
                reasons = [Reason.SUCCESS if each else Reason.NO_SUBSCRIPTION for each in found]
                client.send(suback(packet.number, reasons, kind=Kind.UNSUBACK))
            case Ping():
                client.send(pingresp())
            case Disconnect():
                client.will = client.will if packet.has_will else None
                return False
            case _:
                raise PacketError("CONNECT comes once", Reason.PROTOCOL)
        return True

    def refuse(self, why: str) -> None:
        """Count it, and log it unless much else of the kind was just logged."""
        self.refused += 1
        now = self._clock.monotonic()
        if now - self._logged_at.get(why, -LOG_SECONDS) >= LOG_SECONDS:
            if len(self._logged_at) >= CLIENTS_MAX:
                self._logged_at.clear()
            self._logged_at[why] = now
            log.warning("refused: %s", why)

    def _publish(self, client: Client, message: Publish) -> Reason:
        if not may_publish(client.who, message.topic):
            self.refuse(f"{client.who} may not publish on {message.topic[:120]!r}")
            return Reason.NOT_AUTHORIZED
        if message.retain:
            self._retain(message)
        for other in list(self.clients):
            wanted = [each for each in other.filters.values() if matches(each.filter, message.topic)]
            if other is client:
                wanted = [each for each in wanted if not each.no_local]
            if wanted:
                qos = min(message.qos, max(each.qos for each in wanted))
                other.deliver(message, qos=qos, retain=message.retain and any(each.keeps_flag for each in wanted))
        return Reason.SUCCESS

    def _retain(self, message: Publish) -> None:
        self._retained.pop(message.topic, None)
        if message.payload and len(self._retained) < RETAINED_MAX:
            self._retained[message.topic] = message

    def _subscribe(self, client: Client, packet: Subscribe) -> None:
        reasons: list[int] = []
        for each in packet.wanted:
            if not may_subscribe(client.who, each.filter):
                self.refuse(f"{client.who} may not hear {each.filter[:120]!r}")
                reasons.append(Reason.NOT_AUTHORIZED)
            elif len(client.filters) >= FILTERS_MAX and each.filter not in client.filters:
                reasons.append(Reason.QUOTA)
            else:
                client.filters[each.filter] = each
                reasons.append(each.qos)
        client.send(suback(packet.number, reasons))
        for each, reason in zip(packet.wanted, reasons, strict=True):
            if reason <= Reason.GRANTED_QOS_1 and each.sends_retained:
                for topic, message in list(self._retained.items()):
                    if matches(each.filter, topic):
                        client.deliver(message, qos=min(message.qos, each.qos), retain=True)
