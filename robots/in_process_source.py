"""A policy in the process of its loop: how evaluation and fine-tuning ask it, on a virtual clock."""

from volar.robots.interface import ActionChunk, ActionPrefix, Observation, Policy, PrefixPolicy


class InProcessSource:
    """A `ChunkSource` that runs a policy in this process, for a virtual clock.

    The policy predicts at `submit`; its chunk is handed out once `latency_s` [s] of the loop's time has
    passed since the observation's stamp, so that evaluation feels the latency that deployment has.
    """

    def __init__(self, policy: Policy, latency_s: float = 0.0) -> None:
        if latency_s < 0:
            raise ValueError(f"latency_s must not be negative, is {latency_s}")
        self.policy = policy
        self._latency_ns = round(latency_s * 1e9)
        self._chunk: ActionChunk | None = None

    def reset(self, seed: int) -> None:
        """Drops the pending chunk and resets the policy."""
        self._chunk = None
        self.policy.reset(seed)

    def submit(self, observation: Observation) -> None:
        self._chunk = self.policy.predict(observation)

    @property
    def takes_prefix(self) -> bool:
        """True when the policy continues from what is executed meanwhile."""
        return isinstance(self.policy, PrefixPolicy)

    def submit_after(self, observation: Observation, prefix: ActionPrefix) -> None:
        """As `submit`, for a `PrefixPolicy`."""
        assert isinstance(self.policy, PrefixPolicy)
        self._chunk = self.policy.predict_after(observation, prefix)

    def poll(self, now_ns: int) -> ActionChunk | None:
        if self._chunk is None:
            return None
        if self._chunk.stamp_ns <= now_ns < self._chunk.stamp_ns + self._latency_ns:  # sooner: the clock went back
            return None
        chunk, self._chunk = self._chunk, None
        return chunk

    @property
    def pending(self) -> bool:
        return self._chunk is not None
