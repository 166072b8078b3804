"""LeRobot's asynchronous server with Volar's policies among those it takes; every option is LeRobot's.

    python -m volar.vla.lerobot_plugin.serve --host=127.0.0.1 --port=8080

LeRobot 0.6.1 keeps the policy types of its server in a list and imports no plugins there. Its protocol unpickles what
a client sends, so whoever reaches the port runs code on this machine: leave it on localhost or behind a tunnel.
`volar-serve` speaks msgpack and compares contracts.
"""


def main() -> None:
    """Returns when the server ends. Raises `SystemExit` naming the extra where gRPC is missing."""
    try:
        from lerobot.async_inference.constants import SUPPORTED_POLICIES
    except ImportError as error:
        raise SystemExit(f"LeRobot's server needs gRPC: pip install 'lerobot[async]' ({error})") from None
    from lerobot.async_inference.policy_server import serve

    if "volar" not in SUPPORTED_POLICIES:
        SUPPORTED_POLICIES.append("volar")
    serve()


if __name__ == "__main__":
    main()
