"""UPerNet on a frozen encoder for ADE20K, trained by mmsegmentation (docs/mmseg.md):

    python TOOLS/train.py upernet_ade20k.py --cfg-options model.backbone.source=CKPT

The protocol is that of mmsegmentation's UPerNet on ViT-B/16, AdamW for 160 000 steps of 16 crops of 512 pixels, and deviates
in these: the encoder is ours and frozen, with ViTDet's pyramid in the place of the neck; one device takes all 16 crops, not
eight devices two each; and whole images are segmented in windows of 512 pixels, 341 apart. An encoder of another width,
depth or patch asks for another ``width``, ``out_indices`` and ``size_divisor``.

Hardware: not measured. Time: not measured. Metric: not measured.
"""

_base_ = ["mmseg::vit/vit_vit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py"]
custom_imports = {"imports": ["huvr.tasks.mmseg"]}
width = 768
model = {
    "pretrained": None,
    # RGB in [0, 1]; what is tested on is padded to whole patches
    "data_preprocessor": {"mean": [0, 0, 0], "std": [255, 255, 255], "test_cfg": {"size_divisor": 16}},
    "backbone": {
        "_delete_": True,
        "type": "HUVRBackbone",
        "source": "runs/pretrain",
        "out_indices": (2, 5, 8, 11),
        "pyramid": True,
    },
    "neck": None,
    "decode_head": {"in_channels": [width] * 4},
    "auxiliary_head": {"in_channels": width},
    "test_cfg": {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)},
}
train_dataloader = {"batch_size": 16}
