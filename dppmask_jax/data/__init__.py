"""Images from disk to the model.

sources.open_source("shapes" | "folder:PATH" | "tfds:NAME", "train" | "val", data_dir=None,
    val_fraction=0.1) -> Source or None; sources.open_splits does both at once.
Source: len(s), s.read(i) -> (bytes, label), s.name(i), s.extras(i), s.labelled, s.num_classes,
    s.class_names, s.unlabelled_because.
loader.train_stream(source, *, example, batch_size, seed, start_step=0, workers=0, shard=0,
    num_shards=1, log=…) -> iterator and context manager; batches of example's arrays and
    {"label", "index", "bad"}. example(bytes, np.random.Generator) -> arrays is a functools.partial
    of crops.single_view -> {"image"} or crops.multi_crop -> {"global_views", "local_views"}.
loader.eval_batches(source, *, image_size, batch_size, indices=None, workers=0, shard=0,
    num_shards=1, log=…) -> iterator; batches {"image", "label", "index", "valid"}.
augment.flip_and_normalize(images, keys, flip=True), augment.normalize, augment.denormalize.
views.augment_view(images, keys, *, blur_prob, solarize_prob, …): colours, blur, normalize.
"""
