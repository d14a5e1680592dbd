"""An object store that goes away and comes back: moto's server, for clients of this process and of others."""

import importlib.util

MISSING = [name for name in ("s3fs", "moto", "flask", "aiohttp") if importlib.util.find_spec(name) is None]
WHY = f"{', '.join(MISSING)} not installed: pip install 'dist-alexnet[dev]'"


class Store:
    """Can be stopped and started again at the same address with all that it holds."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """How a client finds it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }


def forget_clients() -> None:
    """Clients are kept, with the endpoint that they were made for."""
    import s3fs

    from shards import storage

    storage._client.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
