"""The model in Ray Serve."""

import asyncio
import os
import time

import ray
from onnx_session import Session
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Model:
    """An image's bytes as the body."""

    def __init__(self):
        self.session = Session()

    @serve.batch(
        max_batch_size=int(os.environ["MAX_BATCH_SIZE"]), batch_wait_timeout_s=float(os.environ["BATCH_TIMEOUT_S"])
    )
    async def compute(self, images):
        """In a thread, so that the next batch can gather."""
        return await asyncio.to_thread(self.session.answer, images)

    async def __call__(self, request):
        """One caller's."""
        return await self.compute(await request.body())


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=int(os.environ["THREADS"]), logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Model.options(logging_config={"enable_access_log": False}).bind(), route_prefix="/predict")
    while True:
        time.sleep(3600)
