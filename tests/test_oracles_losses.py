import jax
import jax.numpy as jnp
import numpy as np
import oracles

from dppmask_jax.losses import distillation
from dppmask_jax.methods.ibot import temperature

pytestmark = oracles.MARKS
VIEWS, IMAGES = 2, 3


class Warming:
    def __init__(self, start, end, warmup_epochs):
        self.start, self.end, self.warmup_epochs = start, end, warmup_epochs


def test_ibot_loss_its_centres_and_temperatures():
    oracle = oracles.load("ibot_loss")
    class_temp, patch_temp = Warming(0.04, 0.07, 3), Warming(0.05, 0.07, 3)
    for name, settings in (("temp", class_temp), ("temp2", patch_temp)):
        found = [temperature(settings, epoch) for epoch in range(8)]
        oracles.near(f"ibot_loss, {name}", found, oracle[f"{name}_schedule_8"], 1e-6)

    @jax.jit
    def loss(student, teacher, mask, centers, temps):
        split = lambda x: x.reshape(-1, IMAGES, *x.shape[1:])  # noqa: E731
        targets = [
            distillation.teacher_probabilities(*given)
            for given in zip(teacher, centers, temps, strict=True)
        ]

        def parts(student):
            views = jnp.concatenate([split(student["cls"]), split(student["local"])])
            of_class = distillation.class_token_loss(split(targets[0]), views, 0.1)
            of_patch = distillation.patch_token_loss(targets[1], student["patch"], mask, 0.1)
            return of_class + of_patch, (of_class, of_patch)

        return jax.value_and_grad(parts, has_aux=True)(student)

    centers = [np.zeros(11), np.zeros(11)]
    for step in ("s0", "s1", "s2", "s3"):
        given = {name.removeprefix(f"{step}_"): oracle[name] for name in oracle if step in name}
        student = {"cls": given["student_cls"], "patch": given["student_patch"]}
        student["local"] = given["student_local"]
        teacher = (given["teacher_cls"], given["teacher_patch"])
        mask = given["mask"].reshape(VIEWS * IMAGES, 9)
        temps = [
            temperature(settings, int(given["epoch"])) for settings in (class_temp, patch_temp)
        ]
        (total, parts), gradients = loss(student, teacher, mask, centers, temps)
        oracles.near(f"ibot_loss, {step}", total, given["loss"], 1e-6, relative=True)
        for part, name in zip(parts, ("cls", "patch"), strict=True):
            oracles.near(
                f"ibot_loss, {step}, {name}", part, given[f"loss_{name}"], 1e-6, relative=True
            )
            expected = given[f"grad_student_{name}"]
            oracles.near(f"ibot_loss, {step}, d {name}", gradients[name], expected, 1e-6)
        # The centre is a mean over all tokens of both views, decayed by 0.9 as the method has it.
        centers = [
            0.9 * center + 0.1 * logits.reshape(-1, 11).mean(axis=0)
            for center, logits in zip(centers, teacher, strict=True)
        ]
        for center, name in zip(centers, ("center", "center2"), strict=True):
            oracles.near(f"ibot_loss, {step}, {name}", center, given[f"{name}_after"], 1e-6)
