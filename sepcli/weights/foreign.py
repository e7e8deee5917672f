"""What a file of another package says about its network, in our words: class and arguments to architecture, settings.

The classes are facts of package demucs 4.1.0 and of the public trainer (trainer.py): their arguments with defaults,
which of them have another name here, and which have the one value that our class is made for. Nothing is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from sepcli.errors import ModelError
from sepcli.weights.read import Published

TRAITS = {
    "sources": "sources", "audio_channels": "channels", "samplerate": "sample_rate", "segment": "segment",
    "level": "level",
}  # fmt: skip
"""Arguments that are traits here: those of every demucs class, and what a trainer's yaml says of the level."""


@dataclass(frozen=True)
class Foreign:
    """A class of another package. `defaults` has its arguments in order; one that is not given has that value.

    `names` are arguments with another name here; `fixed` have one value here and no setting; `training` do not matter
    to a network that is loaded. `always` are settings here that its networks all have; `longest` the setting that says
    how long a piece may be, where that is more than a trait. `in_use`: its segment is that of use, not of training.
    """

    architecture: str
    defaults: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    training: tuple[str, ...] = ()
    always: Mapping[str, Any] = field(default_factory=dict)
    longest: str = ""
    in_use: bool = False


RESIDUAL = {"dconv_mode": 1, "dconv_depth": 2, "dconv_comp": 4, "dconv_attn": 4, "dconv_lstm": 4, "dconv_init": 1e-4}

# fmt: off
ROFORMER = Foreign(
    architecture="roformer.RoFormer",
    defaults={
        "sources": None, "audio_channels": 2, "samplerate": 44100, "segment": None, "level": None,
        "dim": 384, "depth": 6, "time_transformer_depth": 2, "freq_transformer_depth": 2, "linear_transformer_depth": 0,
        "dim_head": 64, "heads": 8, "attn_dropout": 0.0, "ff_dropout": 0.0, "flash_attn": True, "sage_attention": False,
        "dim_freqs_in": 1025, "stft_n_fft": 2048, "stft_hop_length": 512, "stft_win_length": 2048,
        "stft_normalized": False, "stft_window_fn": None, "zero_dc": False,  # theirs is on since 2025-09-23 only
        "mask_estimator_depth": 2, "multi_stft_resolution_loss_weight": 1.0, "multi_stft_resolutions_window_sizes": (),
        "multi_stft_hop_size": 147, "multi_stft_normalized": False, "multi_stft_window_fn": None,
        "match_input_audio_length": False, "mlp_expansion_factor": 4, "use_torch_checkpoint": False,
        "skip_connection": False, "use_pope": False,
    },
    names={
        "dim_head": "head_width", "stft_hop_length": "hop", "mask_estimator_depth": "mask_depth",
        "mlp_expansion_factor": "expansion", "freqs_per_bands": "bands",
    },
    fixed={
        "time_transformer_depth": 1, "freq_transformer_depth": 1, "linear_transformer_depth": 0, "dim_freqs_in": 1025,
        "stft_n_fft": 2048, "stft_win_length": 2048, "stft_normalized": False, "stft_window_fn": None,
        "skip_connection": False, "use_pope": False,
    },
    training=(
        "attn_dropout", "ff_dropout", "flash_attn", "sage_attention", "multi_stft_resolution_loss_weight",
        "multi_stft_resolutions_window_sizes", "multi_stft_hop_size", "multi_stft_normalized", "multi_stft_window_fn",
        "match_input_audio_length", "use_torch_checkpoint",
    ),
    in_use=True,
)

CLASSES = {
    "demucs.hdemucs.HDemucs": Foreign(
        architecture="hdemucs.HDemucs",
        defaults={
            "sources": None, "audio_channels": 2, "channels": 48, "channels_time": None, "growth": 2, "nfft": 4096,
            "wiener_iters": 0, "end_iters": 0, "wiener_residual": False, "cac": True, "depth": 6, "rewrite": True,
            "hybrid": True, "hybrid_old": False, "multi_freqs": None, "multi_freqs_depth": 2, "freq_emb": 0.2,
            "emb_scale": 10, "emb_smooth": True, "kernel_size": 8, "time_stride": 2, "stride": 4, "context": 1,
            "context_enc": 0, "norm_starts": 4, "norm_groups": 4, **RESIDUAL, "rescale": 0.1,
            "samplerate": 44100, "segment": 40,
        },
        names={"channels": "width", "wiener_iters": "wiener_iterations"},
        fixed={
            "channels_time": None, "wiener_residual": False, "kernel_size": 8, "time_stride": 2, "stride": 4,
            "context": 1, "context_enc": 0,
        },
        training=("end_iters",),
    ),
    "demucs.htdemucs.HTDemucs": Foreign(
        architecture="htdemucs.HTDemucs",
        defaults={
            "sources": None, "audio_channels": 2, "channels": 48, "channels_time": None, "growth": 2, "nfft": 4096,
            "wiener_iters": 0, "end_iters": 0, "wiener_residual": False, "cac": True, "depth": 4, "rewrite": True,
            "multi_freqs": None, "multi_freqs_depth": 3, "freq_emb": 0.2, "emb_scale": 10, "emb_smooth": True,
            "kernel_size": 8, "time_stride": 2, "stride": 4, "context": 1, "context_enc": 0, "norm_starts": 4,
            "norm_groups": 4, "dconv_mode": 1, "dconv_depth": 2, "dconv_comp": 8, "dconv_init": 1e-3,
            "bottom_channels": 0, "t_layers": 5, "t_emb": "sin", "t_hidden_scale": 4.0, "t_heads": 8,
            "t_dropout": 0.0, "t_max_positions": 10000, "t_norm_in": True, "t_norm_in_group": False,
            "t_group_norm": False, "t_norm_first": True, "t_norm_out": True, "t_max_period": 10000.0,
            "t_weight_decay": 0.0, "t_lr": None, "t_layer_scale": True, "t_gelu": True, "t_weight_pos_embed": 1.0,
            "t_sin_random_shift": 0, "t_cape_mean_normalize": True, "t_cape_augment": True,
            "t_cape_glob_loc_scale": [5000.0, 1.0, 1.4], "t_sparse_self_attn": False, "t_sparse_cross_attn": False,
            "t_mask_type": "diag", "t_mask_random_seed": 42, "t_sparse_attn_window": 500, "t_global_window": 100,
            "t_sparsity": 0.95, "t_auto_sparsity": False, "t_cross_first": False, "rescale": 0.1,
            "samplerate": 44100, "segment": 10, "use_train_segment": True,
        },
        names={"channels": "width"},
        fixed={
            "channels_time": None, "growth": 2, "wiener_iters": 0, "wiener_residual": False, "cac": True,
            "rewrite": True, "multi_freqs": None, "kernel_size": 8, "stride": 4, "context": 1, "context_enc": 0,
            "norm_starts": 4, "t_emb": "sin", "t_norm_in": True, "t_norm_in_group": False, "t_group_norm": False,
            "t_norm_first": True, "t_norm_out": True, "t_max_period": 10000.0, "t_layer_scale": True, "t_gelu": True,
            "t_weight_pos_embed": 1.0, "t_sparse_self_attn": False, "t_sparse_cross_attn": False,
            "t_cross_first": False, "use_train_segment": True,
        },
        training=(  # or of variants that `fixed` excludes
            "end_iters", "multi_freqs_depth", "time_stride", "norm_groups", "t_max_positions", "t_weight_decay", "t_lr",
            "t_sin_random_shift", "t_cape_mean_normalize", "t_cape_augment", "t_cape_glob_loc_scale", "t_mask_type",
            "t_mask_random_seed", "t_sparse_attn_window", "t_global_window", "t_sparsity", "t_auto_sparsity",
        ),
        longest="trained",
    ),
    "demucs.demucs.Demucs": Foreign(
        architecture="demucs.Demucs",
        defaults={
            "sources": None, "audio_channels": 2, "channels": 64, "growth": 2.0, "depth": 6, "rewrite": True,
            "lstm_layers": 0, "kernel_size": 8, "stride": 4, "context": 1, "gelu": True, "glu": True,
            "norm_starts": 4, "norm_groups": 4, **RESIDUAL, "normalize": True, "resample": True, "rescale": 0.1,
            "samplerate": 44100, "segment": 40,
        },
        names={"channels": "width", "normalize": "normalise", "resample": "oversample"},
        fixed={"kernel_size": 8, "stride": 4, "context": 1, "glu": True},
        always={"context_padding": True},
    ),
    "demucs.model.Demucs": Foreign(  # of versions 1 and 2: version 1 does not know the last line, version 2 says it
        architecture="demucs.Demucs",
        defaults={
            "sources": None, "audio_channels": 2, "channels": 64, "depth": 6, "rewrite": True, "glu": True,
            "upsample": False, "rescale": 0.1, "kernel_size": 8, "stride": 4, "growth": 2.0, "lstm_layers": 2,
            "context": 3, "samplerate": 44100, "segment": None,
            "resample": False, "normalize": False, "segment_length": None,
        },
        names={"channels": "width", "normalize": "normalise", "resample": "oversample"},
        fixed={"glu": True, "upsample": False, "kernel_size": 8, "stride": 4, "context": 3},
        training=("segment_length",),
        always={"context_padding": False, "gelu": False, "norm_starts": 999, "dconv_mode": 0},
    ),
}
CLASSES["BSRoformer"] = replace(ROFORMER, defaults={**ROFORMER.defaults, "freqs_per_bands": "bs"})
CLASSES["MelBandRoformer"] = replace(
    ROFORMER, defaults={**ROFORMER.defaults, "num_bands": 60}, fixed={**ROFORMER.fixed, "num_bands": 60},
    always={"bands": "mel"},
)
CLASSES["SCNet"] = Foreign(
    architecture="scnet.SCNet",
    defaults={
        "sources": None, "audio_channels": 2, "samplerate": 44100, "segment": None, "level": None,
        "widths": [32, 64, 128], "shares": [0.175, 0.392], "nfft": 4096, "hop_size": 1024, "normalized": True,
        "band_stride": [1, 4, 16], "band_kernel": [3, 4, 16], "conv_depths": [3, 2, 1], "compress": 4, "conv_kernel": 3,
        "num_dplayer": 6, "expand": 1,
    },
    names={
        "nfft": "n_fft", "hop_size": "hop", "band_stride": "strides", "band_kernel": "kernels", "conv_depths": "depths",
        "num_dplayer": "layers",
    },
    fixed={"normalized": True, "conv_kernel": 3, "expand": 1},
    in_use=True,
)
# fmt: on


@dataclass(frozen=True)
class Description:
    """What a file says about its network. `dropped`: arguments that its class no longer has, which demucs drops too."""

    architecture: str
    settings: Mapping[str, Any]
    traits: Mapping[str, Any]
    dropped: tuple[str, ...] = ()
    in_use: bool = False


def describe(published: Published, where: str) -> Description | None:
    """The network that a foreign file describes; None where it carries no class that is known here.

    Raises ModelError naming an argument with a value that our class is not made for.
    """
    known = CLASSES.get(published.klass)
    if known is None:
        return None
    given = {**dict(zip(known.defaults, published.order, strict=False)), **published.carried}
    arguments = {**known.defaults, **{name: value for name, value in given.items() if name in known.defaults}}
    for name, value in known.fixed.items():
        if arguments[name] != value and (arguments[name] or value):  # no bands are [] or None
            what = f"{where}: {name} = {str(arguments[name])[:40]} of {published.klass} has no counterpart here"
            raise ModelError(what, f"only {name} = {value} is known")
    skipped = {*known.fixed, *known.training, *TRAITS}
    settings = {known.names.get(name, name): plain(v) for name, v in arguments.items() if name not in skipped}
    if settings.get("cac"):
        settings["wiener_iterations"] = 0  # complex spectrograms are never filtered, whatever the argument says
    settings |= known.always
    traits = {ours: plain(arguments[theirs]) for theirs, ours in TRAITS.items() if arguments.get(theirs) is not None}
    if known.longest:
        settings[known.longest] = traits["segment"]
    if isinstance(traits.get("sources"), int):
        del traits["sources"]  # demucs v1 says how many there are, not which
    dropped = tuple(name[:40] for name in given if name not in known.defaults)
    return Description(known.architecture, settings, traits, dropped, known.in_use)


def plain(value: Any) -> Any:
    """A value as TOML could have it: a Fraction as a number."""
    return float(value) if isinstance(value, Fraction) else value
