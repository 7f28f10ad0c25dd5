//! The order in which an epoch takes its samples.

use rand::seq::SliceRandom as _;

use crate::rng::{Purpose, stream};

/// A sample in its place in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub sample: usize,
    /// How often the epoch has taken it before.
    pub again: usize,
}

impl Turn {
    /// What the draws of its crops follow from, of `count` samples.
    pub fn key(self, count: usize) -> u64 {
        (self.sample + self.again * count) as u64
    }
}

/// The turns of `epoch`, as many as the `count` samples: each once, or, with the samples' labels, as
/// many of each class. Samples of small classes are then taken several times, each time with other
/// crops, and some of large ones are left out.
pub(super) fn turns(count: usize, labels: Option<&[usize]>, seed: u64, epoch: usize) -> Vec<Turn> {
    let mut turns = match labels {
        None => (0..count).map(|sample| Turn { sample, again: 0 }).collect(),
        Some(labels) => balanced(labels, seed, epoch),
    };
    turns.shuffle(&mut stream(seed, Purpose::Order, epoch as u32, 0, 0));
    turns
}

/// As many turns, of which `repeats` in a row are of one sample, each with other crops (repeated
/// augmentation: Hoffer et al., CVPR 2020, and DeiT). An epoch then takes the first of the samples only.
pub(super) fn repeated(turns: Vec<Turn>, repeats: usize) -> Vec<Turn> {
    let count = turns.len();
    let copies = |turn: Turn| {
        (0..repeats).map(move |copy| Turn { again: turn.again * repeats + copy, ..turn })
    };
    turns.into_iter().flat_map(copies).take(count).collect()
}

fn balanced(labels: &[usize], seed: u64, epoch: usize) -> Vec<Turn> {
    let mut classes: Vec<(u64, Vec<usize>)> = Vec::new();
    for (sample, &label) in labels.iter().enumerate() {
        while classes.len() <= label {
            classes.push((classes.len() as u64, Vec::new()));
        }
        classes[label].1.push(sample);
    }
    classes.retain(|(_, samples)| !samples.is_empty());
    // Others get the images that remain each time.
    let len = classes.len();
    classes.rotate_left(epoch % len.max(1));
    let mut turns = Vec::with_capacity(labels.len());
    for (place, (class, mut samples)) in classes.into_iter().enumerate() {
        samples.shuffle(&mut stream(seed, Purpose::Balance, epoch as u32, class, 0));
        let share = labels.len() / len + usize::from(place < labels.len() % len);
        let turn = |i: usize| Turn { sample: samples[i % samples.len()], again: i / samples.len() };
        turns.extend((0..share).map(turn));
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_sample_once_in_another_order_each_epoch() {
        let of = |epoch| -> Vec<usize> {
            turns(50, None, 1, epoch).iter().map(|turn| turn.sample).collect()
        };
        let sorted = |mut samples: Vec<usize>| {
            samples.sort_unstable();
            samples
        };
        assert_eq!(sorted(of(0)), (0..50).collect::<Vec<_>>());
        assert_eq!(of(3), of(3));
        assert_ne!(of(0), of(1));
    }

    #[test]
    fn balanced_epochs_take_as_many_of_each_class() {
        // Classes of 30, 6 and 2; the class 1 has no sample.
        let labels: Vec<usize> = [vec![0; 30], vec![2; 6], vec![3; 2]].concat();
        let (mut seen, mut of_class) = (HashSet::new(), [0; 4]);
        for epoch in 0..12 {
            let turns = turns(38, Some(&labels), 5, epoch);
            assert_eq!(turns.len(), 38);
            let keys: HashSet<u64> = turns.iter().map(|turn| turn.key(38)).collect();
            assert_eq!(keys.len(), 38, "no crop is drawn twice");
            turns.iter().for_each(|turn| of_class[labels[turn.sample]] += 1);
            seen.extend(turns.iter().map(|turn| turn.sample));
            let small = |turn: &&Turn| labels[turn.sample] == 3;
            let most = turns.iter().filter(small).map(|turn| turn.again).max();
            assert!(matches!(most, Some(5 | 6)), "12 or 13 turns of two samples");
        }
        assert_eq!(of_class, [152, 0, 152, 152]);
        assert_eq!(seen.len(), 38, "nothing is left out for ever");
    }

    #[test]
    fn repeats_follow_each_other_with_other_crops() {
        let plain = turns(20, None, 1, 0);
        assert_eq!(repeated(plain.clone(), 1), plain);
        let three = repeated(plain.clone(), 3);
        let samples = |turns: &[Turn]| turns.iter().map(|turn| turn.sample).collect::<Vec<_>>();
        let of = |i: usize| plain[i].sample;
        assert_eq!(samples(&three[..7]), [of(0), of(0), of(0), of(1), of(1), of(1), of(2)]);
        assert_eq!(three.len(), 20, "six samples thrice, another one twice");
        assert_eq!(three[18].sample, of(6));
        // Classes of 8 and 2 in turn: the small one is taken more than once by itself.
        let labels = [vec![0; 8], vec![1; 2]].concat();
        let keys = |epoch| repeated(turns(10, Some(&labels), 3, epoch), 3);
        for epoch in 0..20 {
            let keys: HashSet<u64> = keys(epoch).iter().map(|turn| turn.key(10)).collect();
            assert_eq!(keys.len(), 10, "no crop is drawn twice");
        }
    }
}
