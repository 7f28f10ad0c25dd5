//! Which views of an image a training step takes.

use super::Rgb8;
use super::augment::{Augment, AugmentOrder, DrawnView};
use crate::config::{CropGroup, FinetuneConfig, PretrainConfig};
use crate::rng::{Purpose, stream};

/// Views that go through the model together: one size, one CutMix draw, one loss term.
#[derive(Clone, Debug)]
pub struct ViewGroup {
    /// Views of each image.
    pub count: usize,
    /// How they are made.
    pub augment: Augment,
}

/// All views of one image in one step. Views are numbered through the groups: with groups of 2 and
/// 4, views 0 and 1 belong to the first and 2 to 5 to the second.
#[derive(Clone, Debug)]
pub struct ViewPlan {
    /// At least one group.
    pub groups: Vec<ViewGroup>,
    /// Changes of the augmentation during the stage, sorted by epoch: from the given epoch on, all views are made
    /// this way. Before the first change each group's own `augment` counts.
    pub later: Vec<(u32, Augment)>,
}

impl ViewPlan {
    /// The crop groups of pre-training.
    pub fn pretrain(config: &PretrainConfig) -> Self {
        let group = |crops: &CropGroup| {
            let mut augment = config.augment.clone();
            augment.blur = crops.blur.unwrap_or(augment.blur);
            augment.solarize = crops.solarize.unwrap_or(augment.solarize);
            let order = AugmentOrder::Pretrain;
            ViewGroup {
                count: crops.count,
                augment: Augment::new(&augment, crops.scale, crops.img_size, order),
            }
        };
        Self { groups: config.crops.iter().map(group).collect(), later: Vec::new() }
    }

    /// The single view of fine-tuning.
    pub fn finetune(config: &FinetuneConfig) -> Self {
        let (early, mixed) = (config.early_of(config.optim.epochs), config.mixed_epochs());
        let augment = |epoch: usize| {
            let mut augment = config.augment.clone();
            let is_plain = !mixed.contains(&epoch);
            if is_plain {
                (augment.rand_augment, augment.erasing) = (false, 0.0);
            }
            let scale = if is_plain { config.plain_scale } else { config.scale };
            let size = if epoch < early { config.early_img_size } else { config.img_size };
            Augment::new(&augment, scale, size, AugmentOrder::Finetune)
        };
        let mut changes = vec![early, mixed.start, mixed.end];
        changes.retain(|epoch| (1..config.optim.epochs).contains(epoch));
        changes.sort_unstable();
        changes.dedup();
        Self {
            groups: vec![ViewGroup { count: 1, augment: augment(0) }],
            later: changes.into_iter().map(|epoch| (epoch as u32, augment(epoch))).collect(),
        }
    }

    /// Number of views of an image.
    pub fn views(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// View number `view` of training sample `sample` in `epoch`; the same arguments give the same
    /// pixels, whatever was drawn before.
    ///
    /// # Panics
    /// If `view` is not below [`ViewPlan::views`].
    pub fn crop(&self, image: &Rgb8, seed: u64, epoch: u32, sample: u64, view: u32) -> Rgb8 {
        let mut rng = stream(seed, Purpose::Augment, epoch, sample, view);
        self.augment(self.group_of(view as usize), epoch).apply(image, &mut rng)
    }

    /// How the views of a group are made in `epoch`.
    pub fn augment<'a>(&'a self, group: &'a ViewGroup, epoch: u32) -> &'a Augment {
        let later = self.later.iter().rfind(|(from, _)| epoch >= *from);
        later.map_or(&group.augment, |(_, augment)| augment)
    }

    /// Side of the first group's views in `epoch`; `None` if there is no group.
    pub fn img_size(&self, epoch: u32) -> Option<usize> {
        self.groups.first().map(|group| self.augment(group, epoch).img_size())
    }

    /// What [`Self::crop`] makes of an image of a size in pixels, as it is drawn.
    ///
    /// # Panics
    /// As [`Self::crop`].
    pub fn draw(
        &self,
        size: (usize, usize),
        seed: u64,
        epoch: u32,
        sample: u64,
        view: u32,
    ) -> DrawnView {
        let mut rng = stream(seed, Purpose::Augment, epoch, sample, view);
        self.augment(self.group_of(view as usize), epoch).draw(size, &mut rng)
    }

    fn group_of(&self, view: usize) -> &ViewGroup {
        let mut end = 0;
        self.groups
            .iter()
            .find(|group| {
                end += group.count;
                view < end
            })
            .unwrap_or_else(|| panic!("view {view} of a plan with {end}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AugmentConfig, Interpolation, Layers};

    fn plan() -> ViewPlan {
        let config = AugmentConfig {
            interpolation: Interpolation::Bilinear,
            ratio: [0.75, 4.0 / 3.0],
            hflip: 0.5,
            color_jitter: [0.8, 0.8, 0.8, 0.2],
            color_jitter_prob: 0.8,
            grayscale: 0.2,
            blur: 0.5,
            blur_sigma: [0.1, 2.0],
            solarize: 0.0,
            rand_augment: false,
            erasing: 0.0,
        };
        let group = |count, size| ViewGroup {
            count,
            augment: Augment::new(&config, [0.14, 1.0], size, AugmentOrder::Pretrain),
        };
        ViewPlan { groups: vec![group(2, 24), group(4, 16)], later: Vec::new() }
    }

    fn image() -> Rgb8 {
        let pixels = (0..50 * 40 * 3).map(|i| (i * 37 % 251) as u8).collect();
        Rgb8 { width: 50, height: 40, pixels }
    }

    #[test]
    fn views_are_numbered_through_the_groups() {
        let plan = plan();
        assert_eq!(plan.views(), 6);
        let sizes: Vec<_> = (0..6).map(|v| plan.crop(&image(), 1, 0, 0, v).width).collect();
        assert_eq!(sizes, [24, 24, 16, 16, 16, 16]);
    }

    #[test]
    fn the_last_epochs_of_fine_tuning_may_be_plain() {
        let mut config =
            Layers::new("paper").and_then(Layers::build).expect("a recipe").config.finetune;
        (config.optim.epochs, config.img_size, config.plain_scale) = (30, 16, [1.0, 1.0]);
        let plan =
            |plain_epochs| ViewPlan::finetune(&FinetuneConfig { plain_epochs, ..config.clone() });
        let plain = FinetuneConfig {
            scale: [1.0, 1.0],
            augment: AugmentConfig { rand_augment: false, ..config.augment.clone() },
            ..config.clone()
        };
        let (never, late, always) = (plan(0), plan(10), ViewPlan::finetune(&plain));
        let crop = |plan: &ViewPlan, epoch| plan.crop(&image(), 5, epoch, 0, 0);
        for epoch in [0, 19] {
            assert_eq!(crop(&late, epoch), crop(&never, epoch));
            assert_ne!(crop(&late, epoch), crop(&always, epoch));
        }
        for epoch in [20, 29] {
            assert_eq!(crop(&late, epoch), crop(&always, epoch));
        }
    }

    #[test]
    fn crops_grow_after_the_early_epochs_and_are_otherwise_the_same() {
        let mut config =
            Layers::new("paper").and_then(Layers::build).expect("a recipe").config.finetune;
        (config.optim.epochs, config.img_size, config.early_img_size) = (10, 24, 16);
        (config.plain_epochs, config.plain_scale) = (7, [1.0, 1.0]);
        let large = ViewPlan::finetune(&config);
        let small = ViewPlan::finetune(&FinetuneConfig { img_size: 16, ..config.clone() });
        config.early_share = 0.5;
        let both = ViewPlan::finetune(&config);
        for epoch in 0..10 {
            let like = if epoch < 5 { &small } else { &large };
            let crop = |plan: &ViewPlan| plan.crop(&image(), 5, epoch, 0, 0);
            assert_eq!(crop(&both), crop(like), "{epoch}");
            assert_eq!(both.img_size(epoch), Some(crop(like).width));
        }
    }

    #[test]
    fn a_view_depends_on_its_coordinates_alone() {
        let (plan, image) = (plan(), image());
        let crop = |seed, epoch, sample, view| plan.crop(&image, seed, epoch, sample, view);
        let base = crop(1, 2, 3, 0);
        for other in [crop(2, 2, 3, 0), crop(1, 3, 3, 0), crop(1, 2, 4, 0), crop(1, 2, 3, 1)] {
            assert_ne!(base, other);
        }
        assert_eq!(base, crop(1, 2, 3, 0));
    }
}
