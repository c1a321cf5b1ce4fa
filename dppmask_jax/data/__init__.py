"""Images from disk to the model.

sources.open_source(spec, "train" | "val", data_dir=None, val_fraction=0.1) -> Source or None, where
    spec is "shapes" | "folder:PATH" | "tfds:NAME" | "coco:ROOT" | "clevr:ROOT" | "csv:FILE";
    sources.open_splits does both at once. folder.py, coco.py, clevr.py and csv_table.py read the
    formats; greys.py says what is white in greyscale of more than 8 bits, for a source as a whole.
source.Source: len(s), s.read(i) -> (bytes, label), s.name(i), s.extras(i), s.labelled,
    s.num_classes, s.class_names, s.unlabelled_because, s.labels() -> (n,), s.targets() -> (n, C),
    s.target_names, s.notes (lines for the user). source.with_targets(s): several labels an image;
    source.only_classes(s, names, where): some classes only;
    classes.class_list("imagenet100" | FILE) -> names.
loader.train_stream(source, *, example, batch_size, seed, extras=(), start_step=0, workers=0,
    shard=0, num_shards=1, log=…) -> iterator and context manager; batches of example's arrays and
    {"label", "index", "row", "bad"}. example(bytes, np.random.Generator) -> arrays is a
    functools.partial of crops.single_view -> {"image"}, crops.multi_crop -> {"global_views",
    "local_views"} or classify.classification_view -> {"image"}.
loader.eval_batches(source, *, image_size, batch_size, extras=(), indices=None, workers=0, shard=0,
    num_shards=1, log=…) -> iterator; batches {"image", "label", "index", "valid"}.
augment.flip(images, keys), augment.normalize, augment.denormalize,
    augment.random_erasing(images, keys, prob=0.25) after normalising.
views.augment_view(images, keys, *, blur_prob, solarize_prob, …): colours, blur, normalize.
mixing.smooth_one_hot(labels, num_classes, smoothing) -> targets; mixing.mix(images, targets, key):
    mixup or CutMix of a batch.
"""
