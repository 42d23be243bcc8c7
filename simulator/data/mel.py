r"""Sound to features: log-mel spectrogram, and on/off spikes where a feature moves.

With a window of 25 ms every 10 ms, $w$ the Hann window and $N$ the length of the Fourier transform:

- power $P_k = c_k |\sum_n w_n x_n e^{-2 \pi i k n / N}|^2 / N$ with $c_k = 1$ for $k = 0$ and
  $k = N/2$, else 2, so that $\sum_k P_k = \sum_n (w_n x_n)^2$ (Parseval);
- mel scale $m(f) = 2595 \log_{10}(1 + f / 700)$, f in Hz;
- band $b = 1..B$: $E_b = \sum_k P_k \max(0, 1 - |m(f_k) / \Delta - b|)$ with
  $\Delta = m(\text{rate} / 2) / (B + 1)$: triangles of height 1 that add up to 1 between the
  centres of the first and the last band;
- feature $x_b = \max(0, 1 + \log_{10}(E_b / \max E) / 8)$: 1 is the loudest band of the recording,
  0 is 80 dB below it or less.

References:
    Comparison of parametric representations for monosyllabic word recognition in continuously
    spoken sentences, IEEE Transactions on Acoustics, Speech, and Signal Processing 28 (1980); the
    scale is that of the HTK Book (Cambridge University, 2002), section 5.4.
"""

import numpy as np
from jaxtyping import Float, Float32

WINDOW = 25e-3  # [s]
HOP = 10e-3  # [s]
_RANGE = 8.0  # [powers of ten], 80 dB
_LONGEST_TRANSFORM = 2**12


def hz_to_mel(f: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Returns the pitch [mel] of a frequency [Hz]."""
    return 2595 * np.log10(1 + f / 700)


def mel_bands(rate: int, n_fft: int, n_mels: int) -> Float[np.ndarray, "bands bins"]:
    """Returns the weight of every frequency bin in every band.

    Args:
        rate: samples a second [Hz].
        n_fft: length of the Fourier transform; there are n_fft / 2 + 1 bins.
        n_mels: number of bands.
    """
    mel = hz_to_mel(np.arange(n_fft // 2 + 1) * (rate / n_fft))
    position = mel / mel[-1] * (n_mels + 1)
    return np.maximum(0, 1 - np.abs(position - np.arange(1, n_mels + 1)[:, None]))


def power_spectrum(
    samples: Float[np.ndarray, " n"], window: int, hop: int, n_fft: int
) -> Float[np.ndarray, "time bins"]:
    """Returns the power of every frequency bin in every window; a row sums to the window's energy.

    A recording shorter than one window is filled up with zeros; an incomplete last window is left
    out.
    """
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    power = np.abs(np.fft.rfft(frames * hann, n_fft)) ** 2 / n_fft
    power[:, 1:-1] *= 2
    return power


def log_mel(
    samples: Float[np.ndarray, " n"], rate: int, n_mels: int
) -> Float32[np.ndarray, "time bands"]:
    """Returns the log-mel spectrogram, in [0, 1]; zeros for silence.

    Args:
        samples: the sound; its loudness has no influence.
        rate: samples a second [Hz].
        n_mels: number of bands.

    Raises:
        ValueError: a rate too low for a window, or more bands than frequencies can fill.
    """
    window, hop = round(WINDOW * rate), round(HOP * rate)
    if hop < 2:
        raise ValueError(f"log_mel: a rate of {rate} Hz was found, expected at least 200 Hz.")
    n_fft = 1 << (window - 1).bit_length()
    top, first = hz_to_mel(np.array([rate / 2, rate / n_fft]))
    while first > top / (n_mels + 1):  # else a band could lie between two bins
        n_fft *= 2
        if n_fft > _LONGEST_TRANSFORM:
            raise ValueError(
                f"log_mel: n_mels={n_mels} leaves bands without a frequency at {rate} Hz, expected "
                "fewer bands."
            )
        first = hz_to_mel(np.array([rate / n_fft]))[0]
    energy = power_spectrum(samples, window, hop, n_fft) @ mel_bands(rate, n_fft, n_mels).T
    loudest = energy.max()
    if loudest == 0:
        return np.zeros(energy.shape, np.float32)
    relative = np.maximum(energy / loudest, 10**-_RANGE)
    return (1 + np.log10(relative) / _RANGE).astype(np.float32)


def on_off_spikes(
    features: Float32[np.ndarray, "time bands"], threshold: float
) -> Float32[np.ndarray, "time channels"]:
    r"""Returns a spike where a feature has moved by `threshold` since its last spike.

    Delta modulation: the reference $r$ starts at 0; where $x_t - r \ge \theta$ an on-spike moves it
    up by $\theta$, where $r - x_t \ge \theta$ an off-spike moves it down: at most one spike a step,
    and $\theta$ (on - off), summed over time, follows the features.

    Args:
        features: one row a time step.
        threshold: $\theta$, in units of the features.
    """
    on = np.zeros(features.shape, bool)
    off = np.zeros(features.shape, bool)
    level = np.zeros(features.shape[1], int)  # the reference, in thresholds: no error adds up
    for t, x in enumerate(features):
        on[t] = x >= (level + 1) * threshold
        off[t] = x <= (level - 1) * threshold
        level += on[t]
        level -= off[t]
    return np.concatenate([on, off], 1).astype(np.float32)
