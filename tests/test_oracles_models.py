import jax
import jax.numpy as jnp
import numpy as np
import oracles

from dppmask_jax import masking, patches
from dppmask_jax.models import vit, vit_module
from dppmask_jax.models.decoders import MAE, Decoder
from dppmask_jax.models.heads import ProjectionHead
from dppmask_jax.models.sizes import Size
from dppmask_jax.targets import base, pixels
from dppmask_jax.weights import names

pytestmark = oracles.MARKS
ENCODER, DECODER = Size(24, 2, 3), Size(16, 1, 2)


def as_it_is(name):
    return (name,)


def parameters(template, oracle, prefix, spell=as_it_is):
    """The tree of an oracle's parameters, shaped as the template."""
    tensors = {
        name.removeprefix(prefix): array
        for name, array in oracle.items()
        if name.startswith(prefix)
    }
    return names.read(template, spell, tensors)


def compare_gradients(what, gradients, oracle, prefix, spell=as_it_is):
    found = names.write(jax.tree.map(np.asarray, gradients), spell)
    for name, expected in oracle.items():
        if name.startswith(prefix):
            one = found[name.removeprefix(prefix)]
            oracles.near(
                f"{what}, {name}", one.reshape(expected.shape), expected, 2e-6, relative=True
            )


def test_mae_its_losses_and_gradients():
    oracle = oracles.load("mae_tiny")
    encoder = vit_module.ViT(ENCODER, (32, 32), 8, position="fixed", start=vit_module.MAE_START)
    model = MAE(encoder, Decoder(DECODER, (4, 4), 192))
    images = oracles.images(oracle["images"])
    order = np.argsort(oracle["noise"], axis=1).astype(np.int32)
    keep = masking.num_visible(16, float(oracle["mask_ratio"]))
    shapes = jax.eval_shape(lambda key: model.init(key, images, order, keep), jax.random.key(0))
    template = {**shapes["params"]}
    for part, width in (("encoder", 24), ("decoder", 16)):
        table = jax.ShapeDtypeStruct((1, 17, width), jnp.float32)
        template[part] = {**template[part], "positions": table}
    params = parameters(template, oracle, "param.")

    @jax.jit
    def run(params, target):
        def loss(params):
            pred = model.apply({"params": params}, images, order, keep)
            return base.masked_square_error(pred, target, oracle["mask"] > 0), pred

        return jax.value_and_grad(loss, has_aux=True)(params)

    mask = jax.vmap(lambda order: masking.base.mask_from(order, keep))(order)
    oracles.same("mae_tiny, mask", mask.mask, oracle["mask"] > 0)
    for name in ("raw", "normpix"):
        target = pixels.pixel_target(patches.patchify(images, 8), name == "normpix")
        (loss, pred), gradients = run(params, target)
        oracles.near("mae_tiny, pred", pred, oracle["pred"], 2e-6)
        oracles.near(f"mae_tiny, loss {name}", loss, oracle[f"loss_{name}"], 2e-6)
        compare_gradients("mae_tiny", gradients, oracle, f"grad_{name}.")
    restore = np.argsort(order, axis=1)
    oracles.same("mae_tiny, ids_restore", restore, oracle["ids_restore_ratio0.6"])
    keep = oracle["latent_ratio0.6"].shape[1] - 1
    assert keep == masking.num_visible(16, 0.6)
    tokens = encoder.apply({"params": params["encoder"]}, images, method="embed")
    visible = patches.gather(tokens, order[:, :keep])
    latent, _ = encoder.apply({"params": params["encoder"]}, visible, method="encode")
    oracles.near("mae_tiny, latent", latent, oracle["latent_ratio0.6"], 2e-6)
    for ratio in ("0.5", "0.6", "0.7", "0.75", "0.8"):
        expected = oracle[f"len_keep_196_{ratio}"]
        oracles.same(f"mae_tiny, kept at {ratio}", masking.num_visible(196, float(ratio)), expected)


def test_ibot_its_head_and_gradients():
    oracle = oracles.load("ibot_tiny")
    images, local = oracles.images(oracle["images"]), oracles.images(oracle["local_images"])
    mask = oracle["mask"].reshape(len(images), -1)
    module = vit_module.ViT(ENCODER, (32, 32), 8)
    encoder = vit.encoder(module)
    head = ProjectionHead(20, 8, 10, trainable_scale=True, shared=True)
    template = {
        "encoder": jax.eval_shape(encoder.init, jax.random.key(0)),
        "head": jax.eval_shape(lambda k: head.init(k, jnp.zeros((1, 24))), jax.random.key(0))[
            "params"
        ],
        "mask_embed": jax.ShapeDtypeStruct((1, 24), jnp.float32),
    }

    def spell(name):
        return (name if name.startswith("head.") else f"backbone.{name}",)

    params = parameters(template, oracle, "param.", spell)

    def latent_of(params, images, **masked):
        return module.apply({"params": params["encoder"]}, images, **masked)[0]

    def logits_of(params, tokens):
        return head.apply({"params": params["head"]}, tokens)

    def loss(params):
        latent = latent_of(params, images, mask=mask, mask_token=params["mask_embed"])
        of_class, of_patches = (
            logits_of(params, latent[:, 0])[0],
            logits_of(params, latent[:, 1:])[1],
        )
        return jnp.sum(of_class**2) + jnp.mean(of_patches**2), (latent, of_class, of_patches)

    @jax.jit
    def run(params):
        (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        of_local = latent_of(params, local)
        clean, attention = latent_of(params, images), encoder.trace(params["encoder"], images)
        return found, gradients, of_local, logits_of(params, of_local[:, 0])[0], clean, attention

    found, gradients, of_local, local_logits, clean, trace = run(params)
    wanted = ("latent_masked", "cls_logits", "patch_logits")
    pairs = dict(zip(wanted, found, strict=True)) | {
        "latent_local": of_local,
        "local_cls_logits": local_logits,
        "latent_clean": clean,
        "last_attention": trace.blocks[-1].attention,
    }
    for name, one in pairs.items():
        oracles.near(f"ibot_tiny, {name}", one, oracle[name], 5e-6)
    compare_gradients("ibot_tiny", gradients, oracle, "grad.", spell)


def test_fixed_positions():
    oracle = oracles.load("mae_sincos")
    found = patches.fixed_positions((14, 14), 768)[0]
    oracles.near("mae_sincos, 14 x 14", found, oracle["sincos_14_d768"], 1e-6)
    found = patches.fixed_positions((5, 5), 16)[0]
    oracles.near("mae_sincos, 5 x 5", found, oracle["sincos_5_d16"], 1e-6)


def test_fixed_positions_of_moco():
    oracle = oracles.load("moco_positions")
    for grid, width in (((14, 14), 48), ((2, 2), 12)):
        name = f"pos_embed_{grid[0]}x{grid[1]}_d{width}"
        found = patches.fixed_positions(grid, width, "row")
        oracles.near(f"moco_positions, {name}", found, oracle[name], 1e-6)


def test_resized_positions():
    oracle = oracles.load("pos_embed_resize")
    table = oracle["table"]
    for name, expected in oracle.items():
        kind, _, size = name.removesuffix("_f64").partition("_")
        if not name.endswith("_f64") and name not in ("mae_to_14", "ibot_14x14"):
            continue
        sides = size.removeprefix("to_").split("x")
        grid = (int(sides[0]), int(sides[-1]))
        # As the first local crops of DINO have it, a tenth of a patch more than there are.
        found = patches.resize_positions(table, (14, 14), grid, 0.1 if kind == "ibot" else 0.0)
        oracles.near(f"pos_embed_resize, {name}", found, expected, 1e-6)
