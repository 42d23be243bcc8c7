"""Log-mel features and on/off spikes against closed forms."""

import numpy as np
import pytest

from spikebit.simulator.data.mel import (
    hz_to_mel,
    log_mel,
    mel_bands,
    on_off_spikes,
    power_spectrum,
)

RATE = 8000


def tone(f, seconds=0.2, rate=RATE):
    return np.sin(2 * np.pi * f * np.arange(round(seconds * rate)) / rate)


def test_mel_scale():
    """1000 Hz is 1000 mel (that is what the constants are for); 700 Hz is 2595 log10(2)."""
    np.testing.assert_allclose(hz_to_mel(np.array([0.0, 1000.0])), [0, 1000], atol=0.05)
    np.testing.assert_allclose(hz_to_mel(np.array([700.0])), 2595 * np.log10(2), rtol=1e-15)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), [(8000, 256, 20), (16000, 1024, 40)])
def test_bands_are_triangles_that_add_up_to_one(rate, n_fft, n_mels):
    bands = mel_bands(rate, n_fft, n_mels)
    assert bands.shape == (n_mels, n_fft // 2 + 1)
    mel = hz_to_mel(np.arange(n_fft // 2 + 1) * rate / n_fft)
    step = mel[-1] / (n_mels + 1)
    between = (mel >= step) & (mel <= n_mels * step)
    np.testing.assert_allclose(bands.sum(0)[between], 1, rtol=1e-12)
    for b in range(n_mels):  # the corners are the centres of the neighbours
        weight = np.interp(mel, [b * step, (b + 1) * step, (b + 2) * step], [0, 1, 0])
        np.testing.assert_allclose(bands[b], weight, atol=1e-12)


def test_parseval():
    """Every row of the power spectrum sums to the energy of its windowed frame."""
    x = np.random.default_rng(0).normal(size=1000)
    power = power_spectrum(x, 200, 80, 256)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    energy = [((x[t : t + 200] * hann) ** 2).sum() for t in range(0, 801, 80)]
    np.testing.assert_allclose(power.sum(1), energy, rtol=1e-12)


def test_energy_of_a_tone():
    """A tone of amplitude a, whole cycles in a Hann window of N samples: a^2 / 2 * 3 N / 8."""
    power = power_spectrum(0.5 * tone(1000), 200, 80, 256)
    np.testing.assert_allclose(power.sum(1), 0.5**2 / 2 * 3 * 200 / 8, rtol=1e-12)
    assert (power.argmax(1) == round(1000 / (RATE / 256))).all()


@pytest.mark.parametrize("band", [8, 15, 22, 30, 38])
def test_a_pure_tone_lights_its_band(band):
    """A tone at the centre of a band gives 1 there and nowhere else."""
    mel = (band + 1) * 2595 * np.log10(1 + RATE / 2 / 700) / 41
    features = log_mel(tone(700 * (10 ** (mel / 2595) - 1)), RATE, 40)
    assert features.shape == (1 + (1600 - 200) // 80, 40)
    assert (features.argmax(1) == band).all()
    assert features.max() == 1
    far = np.abs(np.arange(40) - band) > 8
    assert features[:, far].max() < 0.6


def test_decibels_and_loudness():
    """Ten times less amplitude is 20 of 80 dB; the loudness of the whole does not matter."""
    x = tone(1000)
    features = log_mel(np.concatenate([x, x / 10]), RATE, 30)
    band = features[0].argmax()
    np.testing.assert_allclose(features[[0, -1], band], [1, 0.75], atol=1e-6)
    np.testing.assert_allclose(log_mel(7 * x, RATE, 30), log_mel(x, RATE, 30), atol=1e-6)


def test_silence_and_short_recordings():
    assert not log_mel(np.zeros(1000), RATE, 10).any()
    assert log_mel(tone(500, 0.01), RATE, 10).shape == (1, 10)
    with_silence = np.concatenate([tone(500), np.zeros(800)])
    assert not log_mel(with_silence, RATE, 10)[-1].any()


def test_every_band_has_a_frequency():
    features = log_mel(np.random.default_rng(1).normal(size=2000), RATE, 150)
    assert (features.max(0) > 0).all()
    with pytest.raises(
        ValueError, match=r"n_mels=1000 leaves bands without a frequency at 8000 Hz"
    ):
        log_mel(tone(500), RATE, 1000)
    with pytest.raises(ValueError, match=r"rate of 100 Hz was found, expected at least 200 Hz"):
        log_mel(tone(5), 100, 4)


def test_spikes_by_hand():
    x = np.array([[0, 0.24, 0.25, 0.49, 0.5, 0.26, 0.25, 0.01, 0]], np.float32).T
    spikes = on_off_spikes(x, 0.25)
    np.testing.assert_array_equal(spikes[:, 0], [0, 0, 1, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(spikes[:, 1], [0, 0, 0, 0, 0, 0, 1, 0, 1])


def test_spikes_follow_the_features():
    """Where no step exceeds the threshold, theta (on - off) summed stays within one threshold."""
    theta = 1 / 16  # a power of two: the sums are exact
    steps = np.random.default_rng(2).uniform(-theta, theta, (500, 7))
    steps[0] = 0
    x = np.cumsum(steps, 0).astype(np.float32)
    spikes = on_off_spikes(x, theta)
    assert set(np.unique(spikes)) == {0, 1}
    on, off = spikes[:, :7], spikes[:, 7:]
    assert not (on * off).any()
    followed = theta * np.cumsum(on - off, 0)
    assert np.abs(followed - x).max() < theta * (1 + 1e-3)
    assert not on_off_spikes(np.zeros((9, 3), np.float32), theta).any()
