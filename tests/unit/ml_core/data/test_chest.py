"""Films as the model gets them: padded, stretched, blank ones as zeros, boxes back on the image, labelled folders."""

import numpy as np
import pytest
from PIL import Image

from ml_core.data.chest import box_on_image, film_prepare, folder_read, label_vector, other_render
from ml_core.data.findings import INDEX


def test_a_film_is_padded_to_a_square_and_stretched_to_the_whole_range():
    grey = np.tile(np.linspace(0.2, 0.6, 100, dtype=np.float32), (300, 1))
    film = film_prepare(grey, size=64)
    assert film.shape == (64, 64)
    assert film.min() == 0
    assert film.max() == 1
    assert film[:, 0].max() < 0.05, "padding is black"


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(64, 64), (40, 90)])
def test_a_blank_picture_becomes_zeros_whatever_its_shape(value, shape):
    assert not film_prepare(np.full(shape, value, dtype=np.float32), size=32).any()


@pytest.mark.parametrize(("height", "width"), [(100, 100), (200, 100), (90, 240)])
def test_a_box_on_the_square_comes_back_to_its_place_on_the_image(height, width):
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    on_image = (0.25, 0.5, 0.25, 0.25)
    x, y, w, h = on_image
    square = ((left + x * width) / side, (top + y * height) / side, w * width / side, h * height / side)
    assert box_on_image(square, height=height, width=width) == pytest.approx(on_image)


def test_a_box_in_the_padding_lies_nowhere_on_the_image():
    assert box_on_image((0.0, 0.0, 0.1, 0.2), height=300, width=100) is None


def test_a_labelled_folder_gives_the_rows_whose_image_is_there(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("image,labels,patient,split\na.png,Effusion|Infiltration,7,val\nb.png,Edema,8,val\n")
    (film,) = folder_read(labels, images=tmp_path)
    assert film.patient == "7"
    assert film.names == {"Pleural Effusion", "Lung Opacity"}
    vector = label_vector(film.names)
    assert vector.sum() == 2
    assert vector[INDEX["Pleural Effusion"]] == 1
    assert folder_read(labels, images=tmp_path, split="train") == []


def test_a_table_without_its_columns_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("file,finding\na.png,Edema\n")
    with pytest.raises(ValueError, match="image and labels"):
        folder_read(tmp_path / "labels.csv", images=tmp_path)


def test_other_pictures_are_repeatable_and_of_many_kinds():
    assert np.array_equal(other_render(4, size=64), other_render(4, size=64))
    spread = {round(float(other_render(seed, size=64).std()), 2) for seed in range(30)}
    assert len(spread) > 5
