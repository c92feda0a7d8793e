"""Before a training reads features from a cache: are they of the model's own encoders?"""

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log

from mg_llava.engine.hooks import nested_datasets, unwrap_model
from mg_llava.registry import HOOKS


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Compares the feature caches of the training data with the model's encoders, whose weights it reads once.

    Without it the model refuses features. Does nothing where no source has a cache.
    """

    def before_train(self, runner: Any) -> None:
        """Let the model accept the caches.

        Raises:
            ValueError: A cache was filled for another model.
        """
        parts = nested_datasets(runner.train_dataloader.dataset)
        sources = [part for part in parts if hasattr(part, "picture_positions")]  # others have no feature cache
        caches = {source.features.cache.name: source.features for source in sources if _features(source) is not None}
        # a process with pictures would run encoders that one with features does not
        alone = all(features.missing == "error" for features in caches.values()) and all(
            _features(source) is not None or not source.picture_positions() for source in sources
        )
        for name, features in caches.items():
            unwrap_model(runner.model).cached.accept(features.cache.about["encoders"], name, alone)
            rest = "no encoder runs" if alone else "other pictures are encoded"
            print_log(f"features of pictures from {name} ({features.cache.about['dtype']}); {rest}", logger="current")


def _features(source: Any) -> Any:
    return getattr(source, "features", None)
