"""DICOM and NIfTI files as images: values, slices, splits."""

import shutil
import sys

import numpy as np
import pytest

from dppmask_jax.data import loader
from dppmask_jax.data.images import decode, kept, medical
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError
from dppmask_jax.figures.images import read_images
from dppmask_jax.pixel_format import ANY, Pixels

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
GREY = Pixels(1, (0.5,), (0.25,), (-1000.0, 3000.0), kept=True)
VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # x, y, z


def dicom(name):
    return pydicom.data.get_testdata_file(name, download=False)


def nifti(path, values, **header):
    image = nibabel.Nifti1Image(values, np.eye(4))
    if header:
        image.header.set_slope_inter(*header["slope"])
    nibabel.save(image, path)
    return str(path)


def test_a_ct_is_in_hounsfield_units():
    path = dicom("CT_small.dcm")
    stored = pydicom.dcmread(path).pixel_array
    values = medical.values_of(path, 0, 2)
    np.testing.assert_array_equal(values, stored.astype(np.float64) - 1024)  # its intercept
    with open(path, "rb") as file:
        of_bytes = kept.read(file.read(), GREY)
    np.testing.assert_array_equal(of_bytes, kept.read_from(path, 0, GREY))
    wanted = np.clip((stored - 1024.0 + 1000) / 4000, 0, 1)
    np.testing.assert_allclose(of_bytes[..., 0], wanted, atol=1e-6)


def test_monochrome1_is_turned_and_palettes_are_colours(tmp_path):
    data = pydicom.dcmread(dicom("MR_small.dcm"))
    plain = data.pixel_array.copy()
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(tmp_path / "one.dcm")
    np.testing.assert_array_equal(
        medical.values_of(str(tmp_path / "one.dcm"), 0, 2), -1 - plain.astype(np.int32)
    )
    assert medical.values_of(dicom("examples_palette.dcm"), 0, 2).shape == (350, 800, 3)


def test_frames_of_a_dicom_are_images():
    path = dicom("SC_rgb_rle_2frame.dcm")
    both = pydicom.dcmread(path).pixel_array
    assert medical.count(path, 2) == len(both) == 2
    for number in (0, 1):
        np.testing.assert_array_equal(medical.values_of(path, number, 2), both[number])
    with open(path, "rb") as file, pytest.raises(decode.DecodeError, match="2 slices or frames"):
        kept.read(file.read(), Pixels(kept=True))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_slices_of_a_volume_stand_as_viewers_show_them(tmp_path, name):
    path = nifti(tmp_path / name, VOLUME)
    assert [medical.count(path, axis) for axis in (0, 1, 2)] == [4, 5, 6]
    axial = medical.values_of(path, 3, 2)
    assert axial.shape == (5, 4)
    assert axial[0, 0] == VOLUME[0, 4, 3] and axial[4, 3] == VOLUME[3, 0, 3]  # y upwards, x right
    sagittal = medical.values_of(path, 1, 0)
    assert sagittal.shape == (6, 5) and sagittal[0, 2] == VOLUME[1, 2, 5]


def test_niftis_scaling_channels_and_single_slices(tmp_path):
    scaled = nifti(tmp_path / "s.nii", VOLUME, slope=(2.0, -10.0))
    wanted = 2.0 * np.rot90(VOLUME[:, :, 0]) - 10
    np.testing.assert_array_equal(medical.values_of(scaled, 0, 2), wanted)
    four = np.stack([VOLUME, VOLUME + 1000], axis=-1)
    path = nifti(tmp_path / "c.nii.gz", four)
    assert medical.count(path, 2) == 6
    np.testing.assert_array_equal(medical.values_of(path, 5, 2), np.rot90(four[:, :, 5]))
    flat = nifti(tmp_path / "f.nii", VOLUME[:, :, :1, None])
    with open(flat, "rb") as file:
        np.testing.assert_array_equal(
            kept.values_of(file.read(), 1)[..., 0], np.rot90(VOLUME[:, :, 0])
        )
    with pytest.raises(decode.DecodeError, match="4x5x6x2x3, not of two, three or four axes"):
        medical.count(nifti(tmp_path / "x.nii", np.zeros((4, 5, 6, 2, 3), np.int16)), 2)


def test_a_folder_of_volumes_is_all_of_their_slices_and_no_volume_is_in_both_splits(tmp_path):
    for name in ("a", "b", "c"):
        for kind in (0, 1):
            (tmp_path / name).mkdir(exist_ok=True)
            suffix = ".nii.gz" if kind else ".nii"
            nifti(tmp_path / name / f"{kind}{suffix}", VOLUME + 100 * kind)
    np.save(tmp_path / "a" / "2.npy", VOLUME[:, :, 0].T)
    train, val = opening.open_splits(f"folder:{tmp_path}", val_fraction=0.5, pixels=GREY)
    assert len(train) + len(val) == 6 * 6 + 1
    files = [{split.name(i).split(" [")[0] for i in range(len(split))} for split in (train, val)]
    assert not files[0] & files[1]
    assert all("files of several images" in split.notes[-1] for split in (train, val))
    for split in (train, val):
        labels = split.labels()
        assert len(labels) == len(split)
        for i in range(len(split)):
            pixels, label = split.read(i)
            folder = split.name(i).split("/")[-2]
            assert label == labels[i] == "abc".index(folder) and pixels.shape == (5, 4, 1)
    number = next(i for i in range(len(train)) if train.name(i).endswith("0.nii [4]"))
    wanted = (np.rot90(VOLUME[:, :, 4]).astype(np.float32) + 1000) / 4000
    np.testing.assert_array_equal(train.read(number)[0][..., 0], wanted)
    other, _ = opening.open_splits(
        f"folder:{tmp_path}", val_fraction=0.5, pixels=GREY._replace(axis=0)
    )
    assert other.identity() != train.identity()
    (batch,) = loader.eval_batches(train, image_size=(4, 4), batch_size=len(train))
    assert batch["valid"].all() and batch["image"].dtype == np.float32


def test_unreadable_files_are_named_and_what_does_not_fit_is_refused(tmp_path):
    for name in ("CT_small.dcm", "MR_small.dcm"):
        shutil.copy(dicom(name), tmp_path)
    whole = (tmp_path / "CT_small.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.nii").write_bytes(b"nothing")
    spec = f"folder:{tmp_path}"
    train, _ = opening.open_splits(spec, val_fraction=0.0, pixels=GREY)
    lines = []
    (batch,) = loader.eval_batches(train, image_size=(8, 8), batch_size=4, log=lines.append)
    assert batch["valid"].tolist() == [True, True, False, False]
    assert [line.split(": ")[1].rpartition("/")[2] for line in lines] == ["no.nii", "short.dcm"]
    with pytest.raises(InputError, match=r"CT_small.dcm: it holds float64 from -896 to 1167"):
        opening.open_splits(spec, val_fraction=0.0, pixels=GREY._replace(range=None))
    with pytest.raises(InputError, match="it has 1 channel "):
        opening.open_splits(spec, val_fraction=0.0, pixels=Pixels(kept=True))


def test_figures_take_slices_spread_over_a_volume(tmp_path):
    path = nifti(tmp_path / "v.nii", VOLUME)
    images = read_images([path], (5, 4), 3, None, GREY)
    wanted = [np.rot90(VOLUME[:, :, z]) for z in (0, 2, 5)]
    np.testing.assert_allclose(images[..., 0] * 4000 - 1000, wanted, atol=1e-2)


@pytest.mark.parametrize("library,name", [("pydicom", "CT_small.dcm"), ("nibabel", "v.nii")])
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, library, name):
    path = dicom(name) if library == "pydicom" else nifti(tmp_path / name, VOLUME)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(decode.DecodeError, match=rf"needs {library}: pip install .*\[medical\]"):
        medical.values_of(path, 0, 2)


def test_measuring_looks_at_files_as_they_are(tmp_path):
    nifti(tmp_path / "v.nii", VOLUME.astype(np.float32))
    train, _ = opening.open_splits(f"folder:{tmp_path}", val_fraction=0.0, pixels=ANY)
    values, _ = train.read(2)
    assert values.dtype == np.float32 and values.max() == VOLUME[:, :, 2].max()
