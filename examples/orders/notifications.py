"""The shop's messages to customers: texts with parameters, kept instead of sent. A plain gRPC server, no Baton."""

from __future__ import annotations

import logging

import grpc
from shop.v1 import notifications_pb2, notifications_pb2_grpc

from examples.orders.answers import AnswersByKey, KeyReusedError
from examples.serving import Context, call_metadata, parser, refuse, serve

SERVICES = ("shop.v1.NotificationService",)

TEXTS = {
    notifications_pb2.NOTIFICATION_TEMPLATE_SHIPPED: "Your order {order_id} is on its way: {tracking_number}.",
    notifications_pb2.NOTIFICATION_TEMPLATE_PAYMENT_DECLINED: "Your payment for order {order_id} was declined.",
    notifications_pb2.NOTIFICATION_TEMPLATE_OUT_OF_STOCK: "We are sorry: order {order_id} is out of stock.",
}

_log = logging.getLogger(__name__)


class NotificationServicer(notifications_pb2_grpc.NotificationServiceServicer):
    """NotificationService that logs each message once."""

    def __init__(self) -> None:
        self._sent: AnswersByKey[notifications_pb2.SendNotificationResponse] = AnswersByKey()
        self._count = 0

    async def SendNotification(
        self, request: notifications_pb2.SendNotificationRequest, context: Context
    ) -> notifications_pb2.SendNotificationResponse:
        """Sends one message, once for each idempotency key."""
        key = call_metadata(context).get("idempotency-key", "")
        try:
            known = self._sent.find(key, request)
        except KeyReusedError:
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "KEY_REUSED",
                "the key came with another request",
            )
        if known is not None:
            return known
        text = TEXTS.get(request.template)
        if text is None:
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "UNKNOWN_TEMPLATE",
                "no such template",
            )
        try:
            text = f"Dear {request.recipient.name}, " + text.format_map(dict(request.parameters))
        except KeyError as error:
            missing = str(error.args[0])
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "MISSING_PARAMETER",
                f"the text needs the parameter {missing}",
                parameter=missing,
            )
        self._count += 1
        _log.debug("to %s: %s", request.recipient.email, text)
        answer = notifications_pb2.SendNotificationResponse(notification_id=f"msg-{self._count:06d}", text=text)
        return self._sent.keep(key, request, answer)


def main() -> None:
    """Serves the messages to customers."""
    options = parser(__doc__).parse_args()
    servicer = NotificationServicer()
    serve(
        options,
        SERVICES,
        lambda server: notifications_pb2_grpc.add_NotificationServiceServicer_to_server(servicer, server),
    )


if __name__ == "__main__":
    main()
