//! Counter-based random streams.
//!
//! Every random draw of a run comes from a ChaCha8 stream whose key *is* the coordinates of the
//! draw: (seed, purpose, epoch, sample, view). Nothing depends on thread count or on what was
//! drawn before, so a run resumes from its step number alone.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream is for. The discriminants are part of the run's reproducibility: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; `sample` counts parameters.
    Init = 1,
    /// Order of the samples in an epoch.
    Order = 2,
    /// Augmentation of one view of one sample.
    Augment = 3,
    /// CutMix and Mixup of one step; `sample` is the step, `view` the crop group.
    Mix = 4,
    /// Drop path; `sample` is the row of the step's batch.
    DropPath = 5,
    /// Train/test split of an unsplit folder.
    Split = 6,
    /// The rendered flower set; `sample` is the image.
    Synth = 7,
    /// Bootstrap resampling of a metric.
    Bootstrap = 8,
    /// Inputs of benchmarks and self-tests.
    Bench = 9,
    /// Dropout of single values; `epoch` is the step, `sample` the row of the step's batch, `view`
    /// the layer.
    Dropout = 10,
    /// Order in which samples of a training part take its images; `epoch` is 1 for one order over
    /// all classes, `sample` is the class.
    Sample = 11,
    /// Which images of a class a balanced epoch takes; `sample` is the class.
    Balance = 12,
}

/// The random stream at the given coordinates. Unused coordinates are zero.
pub fn stream(seed: u64, purpose: Purpose, epoch: u32, sample: u64, view: u32) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[0..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&(purpose as u32).to_le_bytes());
    key[12..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&sample.to_le_bytes());
    key[24..28].copy_from_slice(&view.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng as _;

    #[test]
    fn every_coordinate_names_another_stream() {
        let first = |mut r: ChaCha8Rng| r.next_u64();
        let base = first(stream(1, Purpose::Augment, 2, 3, 4));
        assert_eq!(base, first(stream(1, Purpose::Augment, 2, 3, 4)));
        for other in [
            stream(2, Purpose::Augment, 2, 3, 4),
            stream(1, Purpose::Mix, 2, 3, 4),
            stream(1, Purpose::Augment, 3, 3, 4),
            stream(1, Purpose::Augment, 2, 4, 4),
            stream(1, Purpose::Augment, 2, 3, 5),
        ] {
            assert_ne!(base, first(other));
        }
    }
}
