"""What networks say to images that do not fit, whatever their kind."""

import pytest
import torch

from vitreous import create_model
from vitreous.errors import ModelError
from vitreous.models._grouped_transformer import GroupEmbed
from vitreous.tasks.miniature import scaled_init


@pytest.mark.parametrize(
    "name", ["vit_test", "swin_test", "channelvit_test", "hsdt_test", "low_rank"]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_whole_numbers_are_refused_in_words(name, dtype):
    sizes = {} if name in {"hsdt_test", "low_rank"} else {"num_classes": 2, "image_size": 16}
    net = create_model(name, bands=4, **sizes).eval()
    with pytest.raises(ModelError, match=f"floating-point images, not {str(dtype)[6:]}.*float"):
        net.check(torch.zeros(1, 4, 16, 16, dtype=dtype))  # what forward begins with


def test_each_group_of_bands_starts_as_a_layer_of_its_own():
    torch.manual_seed(0)
    embed = scaled_init(GroupEmbed(((0, 1, 2), (3, 4, 5)), 64, 4))
    assert embed.fan_in == 3 * 4 * 4
    assert embed.weight.square().mean().sqrt().item() == pytest.approx(48**-0.5)
    out = embed(torch.randn(8, 6, 16, 16))
    assert out.std().item() == pytest.approx(1, abs=0.1)
