//! Where the numbers of a plan lie in one piece of memory.
//!
//! Places are counted in values of one image; an engine multiplies them by its rows, so that a value of all
//! its images is in one piece.

use std::ops::Range;

use super::gpu::ALIGNMENT;
use crate::nn::readers::plan::{Id, Op, Plan};

/// Places in a memory of [`Self::len`] values an image.
pub struct Layout {
    /// Of the values.
    pub values: Vec<Range<usize>>,
    /// What operation `i` keeps from its forward for its backward.
    pub kept: Vec<Range<usize>>,
    /// The gradient of value `i`; none where nothing that is asked for depends on it.
    pub gradients: Vec<Option<Range<usize>>>,
    /// What operation `i` needs in its backward only.
    pub scratch: Vec<Range<usize>>,
    /// The values to which operation `i` gives a gradient, and whether another one has been there before.
    gives: Vec<Vec<(Id, bool)>>,
    /// All of it.
    pub len: usize,
}

impl Layout {
    /// For a forward pass alone, after which the values of `outputs` are there.
    pub fn asking(plan: &Plan, outputs: &[Id]) -> Self {
        let mut layout = Self::empty(plan);
        let mut room = Room::default();
        let mut last_use: Vec<Id> = (0..plan.ops.len()).collect();
        for (i, op) in plan.ops.iter().enumerate() {
            op.inputs().into_iter().for_each(|x| last_use[x] = i);
        }
        outputs.iter().for_each(|&output| last_use[output] = plan.ops.len());
        for (i, op) in plan.ops.iter().enumerate() {
            layout.values[i] = room.take(plan.sizes[i].len());
            layout.kept[i] = room.take(kept(plan, i));
            room.give_back(layout.kept[i].clone());
            for x in op.inputs() {
                if last_use[x] == i {
                    room.give_back(layout.values[x].clone());
                }
            }
        }
        layout.len = room.end;
        layout
    }

    /// For a forward pass and a backward one from the gradient of value `from`.
    pub fn training(plan: &Plan, from: Id) -> Self {
        let mut layout = Self::empty(plan);
        let mut room = Room::default();
        for i in 0..plan.ops.len() {
            layout.values[i] = room.take(plan.sizes[i].len());
            layout.kept[i] = room.take(kept(plan, i));
        }
        let mut wanted = vec![false; plan.ops.len()];
        for (i, op) in plan.ops.iter().enumerate() {
            wanted[i] = op.is_trained() || op.inputs().iter().any(|&x| wanted[x]);
        }
        layout.gradients[from] = Some(room.take(plan.sizes[from].len()));
        for i in (0..=from).rev() {
            let Some(own) = layout.gradients[i].clone() else { continue };
            layout.scratch[i] = room.take(scratch(plan, i));
            for x in plan.ops[i].inputs().into_iter().filter(|&x| wanted[x]) {
                let before = layout.gradients[x].is_some();
                layout.gives[i].push((x, before));
                if !before {
                    layout.gradients[x] = Some(room.take(plan.sizes[x].len()));
                }
            }
            room.give_back(layout.scratch[i].clone());
            // The loss is asked for once the whole plan has been laid out.
            if i != from {
                room.give_back(own);
            }
        }
        layout.len = room.end;
        layout
    }

    fn empty(plan: &Plan) -> Self {
        let nothing = || vec![0..0; plan.ops.len()];
        Self {
            values: nothing(),
            kept: nothing(),
            gradients: vec![None; plan.ops.len()],
            scratch: nothing(),
            gives: vec![Vec::new(); plan.ops.len()],
            len: 0,
        }
    }

    /// Whether operation `i` adds to the gradient of `x` or is the first to write it; none if `x` needs no
    /// gradient.
    pub fn adds(&self, i: Id, x: Id) -> Option<bool> {
        self.gives[i].iter().find(|(to, _)| *to == x).map(|(_, before)| *before)
    }
}

/// Values an image that operation `i` keeps: means and deviations of norms, sums of softmaxes, features and
/// sums of the performer.
fn kept(plan: &Plan, i: Id) -> usize {
    let tokens = plan.sizes[i].tokens;
    match plan.ops[i] {
        Op::Norm { .. } => 2 * tokens,
        Op::Attention { heads, .. } => heads * tokens,
        Op::Performer { features, .. } => {
            let [phi, sums, norm] = performer_kept(plan, i, features);
            phi + sums + norm
        }
        _ => 0,
    }
}

/// Features of keys and queries, sums over the tokens, norms of the tokens.
pub fn performer_kept(plan: &Plan, i: Id, features: usize) -> [usize; 3] {
    let size = plan.sizes[i];
    [2 * features * size.tokens, features * (size.dim + 1), size.tokens]
}

/// Values an image that the backward of operation `i` needs besides.
fn scratch(plan: &Plan, i: Id) -> usize {
    let size = plan.sizes[i];
    match plan.ops[i] {
        Op::Attention { heads, .. } => heads * size.tokens,
        Op::Performer { features, .. } => {
            let [phi, sums, norm] = performer_kept(plan, i, features);
            size.len() + phi + sums + norm
        }
        _ => 0,
    }
}

/// Places that are taken and given back.
#[derive(Default)]
struct Room {
    /// Without neighbours, in order.
    free: Vec<Range<usize>>,
    end: usize,
}

impl Room {
    /// The smallest free place that is large enough, else one at the end.
    fn take(&mut self, len: usize) -> Range<usize> {
        let len = len.next_multiple_of(ALIGNMENT);
        let fits = |(_, free): &(usize, &Range<usize>)| free.len() >= len;
        let best = self.free.iter().enumerate().filter(fits).min_by_key(|(_, free)| free.len());
        let Some((i, _)) = best else {
            self.end += len;
            return self.end - len..self.end;
        };
        let start = self.free[i].start;
        self.free[i].start += len;
        self.free.retain(|free| !free.is_empty());
        start..start + len
    }

    fn give_back(&mut self, place: Range<usize>) {
        if place.is_empty() {
            return;
        }
        self.free.push(place);
        self.free.sort_by_key(|free| free.start);
        let mut joined: Vec<Range<usize>> = Vec::new();
        for next in self.free.drain(..) {
            match joined.last_mut().filter(|before| before.end == next.start) {
                Some(before) => before.end = next.end,
                None => joined.push(next),
            }
        }
        self.free = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{NetSpec, Spec};

    #[test]
    fn places_come_back_and_join() {
        let mut room = Room::default();
        let [a, b, c] = [100, 64, 64].map(|len| room.take(len));
        assert_eq!([a.clone(), b.clone(), c.clone()], [0..128, 128..192, 192..256]);
        room.give_back(a);
        room.give_back(c.clone());
        assert_eq!(room.take(60), c, "the smallest that is large enough");
        room.give_back(b);
        assert_eq!(room.take(192), 0..192);
        assert_eq!(room.end, 256);
    }

    /// Whatever is alive at the same time lies apart.
    #[test]
    fn no_two_values_in_use_overlap() {
        for (name, img_size) in
            [("deit_tiny_patch16_224", 112), ("pvt_v2_b2_li", 64), ("t2t_vit_7", 64)]
        {
            let net = NetSpec::classifier(Spec::find(name).expect(name), img_size, 10);
            let net = net.plan(true).expect(name);
            let (plan, logits) = (&net.plan, net.logits.expect("a head"));
            let layout = Layout::training(plan, logits);
            let kept = layout.values.iter().chain(&layout.kept).filter(|r| !r.is_empty());
            let mut ends: Vec<_> = kept.map(|range| (range.start, range.end)).collect();
            ends.sort_unstable();
            assert!(ends.windows(2).all(|two| two[0].1 <= two[1].0), "{name}");
            let forward = ends.last().expect("values").1;
            for (i, op) in plan.ops.iter().enumerate() {
                let Some(own) = &layout.gradients[i] else { continue };
                let read: Vec<_> =
                    op.inputs().into_iter().filter_map(|x| layout.gradients[x].clone()).collect();
                let mut together = read;
                together.extend([own.clone(), layout.scratch[i].clone()]);
                together.retain(|range| !range.is_empty());
                together.sort_by_key(|range| range.start);
                assert!(together.windows(2).all(|two| two[0].end <= two[1].start), "{name}, {i}");
                assert!(together.iter().all(|range| range.start >= forward), "{name}, {i}");
            }
            assert!(layout.len < 2 * forward, "gradients are used again: {name}");
            let asked = Layout::asking(plan, &[net.features, logits]);
            assert!(4 * asked.len < forward, "{name}: {} of {forward}", asked.len);
            for (i, op) in plan.ops.iter().enumerate() {
                for x in op.inputs() {
                    let (x, own) = (&asked.values[x], &asked.values[i]);
                    assert!(x.end <= own.start || own.end <= x.start, "{name}, {i}");
                }
            }
        }
    }
}
