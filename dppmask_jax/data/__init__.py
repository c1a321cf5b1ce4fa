"""Images from disk to the model.

sources.open_splits(spec, *, data_dir=None, val_fraction=0.1, grey_range=None, pixels=RGB) ->
    (training split, validation split or None), sources.open_source(spec, "train" | "val") one of
    them; spec is "shapes" | "folder:PATH" | "tfds:NAME" | "coco:ROOT" | "clevr:ROOT" |
    "saliency:ROOT" | "caltech256:PATH" | "csv:FILE". One file in sources/ reads each format.
sources.base.Source: len(s), s.read(i) -> (bytes, label), s.name(i), s.extras(i), s.labelled,
    s.num_classes, s.class_names, s.unlabelled_because, s.labels() -> (n,), s.targets() -> (n, C),
    s.target_names, s.notes (lines for the user). sources.base.with_targets(s): several labels an
    image; sources.base.only_classes(s, names, where): some classes only;
    sources.classes.class_list("imagenet100" | FILE) -> names.
images.kept.read(bytes, pixels) -> (H, W, C), uint8 or float32 from 0 to 1, of files whose pixels
    are kept, see pixel_format.Pixels.
images.decode.decode(bytes) -> (H, W, 3) uint8; images/greys.py says what is white in greyscale of
    more than 8 bits, for a source as a whole.
loader.train_stream(source, *, example, batch_size, seed, extras=(), start_step=0, workers=0,
    shard=0, num_shards=1, log=…) -> iterator and context manager; batches of example's arrays and
    {"label", "index", "row", "bad"}. example(bytes, np.random.Generator) -> arrays is a
    functools.partial of images.crops.single_view -> {"image"}, images.crops.multi_crop ->
    {"global_views", "local_views"} or images.classify.classification_view -> {"image"}.
loader.eval_batches(source, *, image_size, batch_size, extras=(), indices=None, workers=0, shard=0,
    num_shards=1, log=…) -> iterator; batches {"image", "label", "index", "valid"}.
images.augment.flip(images, keys), images.augment.normalize, images.augment.denormalize,
    images.augment.random_erasing(images, keys, prob=0.25) after normalising.
images.views.augment_view(images, keys, *, blur_prob, solarize_prob, …): colours, blur, normalize.
images.mixing.smooth_one_hot(labels, num_classes, smoothing) -> targets; images.mixing.mix(images,
    targets, key): mixup or CutMix of a batch.
"""
