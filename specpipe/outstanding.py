"""Which commands the target has yet to answer, for those who see them go and the answers come."""

from specpipe.worker_messages import Extend, Proceed, Progress, Verdict


class Outstanding:
    """The commands to the target, by request."""

    def __init__(self) -> None:
        self._sent: dict[int, list[Extend | Proceed]] = {}

    def note(self, message: Extend | Proceed) -> None:
        """It was sent."""
        if isinstance(message, Extend) and message.start == 0:
            self._sent[message.request] = []  # it begins, perhaps anew
        self._sent.setdefault(message.request, []).append(message)

    def answered(self, answer: Progress | Verdict) -> Extend | None:
        """What this answers, with what the target looked up; None if it comes late."""
        sent = self._sent.get(answer.request, [])
        if not sent or sent[0].extend_id != answer.extend_id:
            return None
        extend = sent.pop(0)
        assert isinstance(extend, Extend), "what it comes to is known"
        if isinstance(answer, Progress):
            return extend
        extend = extend.followed_by([guess.token for guess in answer.block])
        if sent and isinstance(sent[0], Proceed):
            position, whole = extend.verify_from + answer.accepted, len(extend.judged)
            sent[0] = sent[0].after(position, answer.token, whole=answer.accepted == whole)
        return extend

    def forget(self, request: int) -> None:
        """The request ended."""
        self._sent.pop(request, None)
