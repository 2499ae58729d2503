"""Which way is better, of the names that people log; and which split judges a run."""

from __future__ import annotations

import pandas as pd
import pytest

from common.experiments.catalogue import Catalogue
from common.experiments.metrics import (
    is_per_token,
    metric_direction,
    preferred_split,
)
from common.utils import save_experiment


def names_of(text: str) -> list[str]:
    return text.split()


LOWER = names_of("""
    loss train/loss val_loss eval-loss valLoss Val/Loss loss/ce loss_epoch train_loss_step total_loss
    auc_loss f1_loss accuracy_loss recall_loss policy_gradient_loss losses/value_loss vicreg_std_loss
    trainloss valloss test.loss loss_kl contrastive-loss best_val_loss loss_per_token
    precision_error top5_error err top-1-err mean_squared_error mean_absolute_error calibration_error
    error_rate word_error_rate errors_per_minute num_errors
    perplexity ppl eval_ppl word_perplexity nll negative_log_likelihood cross_entropy CrossEntropy
    bits_per_byte bits_per_character bpb bpc nats mae RMSE val/mse brier_score ece wer WER cer fid FID
    lpips false_positive_rate fpr regret
    seconds step_seconds seconds_per_step time_per_token_ms latency_ms s/it eval_runtime epoch_time step_time
    peak_memory_gib gpu_memory_gib time_to_first_token neg_log_likelihood
""")
HIGHER = names_of("""
    accuracy val/acc val/acc@1 acc1 top1 top5 top-5 top5_accuracy test_accuracy_epoch valAcc testacc
    acc_norm balanced_accuracy accuracy_top_5 f1 macro_f1 F1Score f1_score precision recall recall@10
    prec@1 auc ROC-AUC val_auroc average_precision_AP mAP mAP50 map_50 mIoU IoU dice_coefficient bleu
    bleu4 sacrebleu rouge-l rougeL rouge1 chrf exact_match em pass@1 pass@10 hits@10 mrr ndcg@10 r2
    r_squared R2 mcc matthews_correlation pearson spearman psnr ssim log_likelihood true_positive_rate
    win_rate success_rate charts/SPS
    tokens_per_second tokens_per_sec tokens/s tokens/sec it/s samples/second train_samples_per_second
    steps_per_second tokens_per_second_per_gpu flops_per_second throughput mfu tflops
    neg_mean_squared_error neg_log_loss
""")
UNKNOWN = names_of("""
    lr learning_rate grad_norm gradient_norm epoch step num_tokens tokens tokens_seen weight_decay loss_scale
    grad_scale loss_weight loss_std accuracy_std acc_stderr std_reward reward_std accuracy_threshold loss_gap
    generalization_gap entropy policy_entropy kl approx_kl clip_fraction explained_variance temperature
    cpu_percent gpu_percent gpu_utilization batch_size map_size dropout_rate parameters flops floss x
    tokens_per_step score momentum beta2 reward rollout/ep_rew_mean episode_return
""")


def test_the_direction_of_names_that_people_log() -> None:
    expected = dict.fromkeys(LOWER, "min") | dict.fromkeys(HIGHER, "max")
    expected |= dict.fromkeys(UNKNOWN, None)
    assert len(expected) == len(LOWER) + len(HIGHER) + len(UNKNOWN)  # none twice
    assert {name: metric_direction(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("splits", "judge"),
    [
        (["train", "val"], "val"),
        (["train", "val", "test"], "test"),
        (["train", "eval"], "eval"),
        (["train", "dev"], "dev"),
        (["train", "valid"], "valid"),
        (["Train", "Val"], "Val"),
        (["TRAIN", "VALIDATION"], "VALIDATION"),
        (["training", "dev-clean"], "dev-clean"),
        (["train", "val_wiki", "val"], "val"),
        (["train", "validation/web"], "validation/web"),
        (["train", "held_out"], "held_out"),
        (["val", "test-other", "test-clean"], "test-clean"),
        (["train", "ood"], "train"),
        (["ood", "val"], "val"),
        (["train"], "train"),
        (["val_quick", "val"], "val"),
        (["val_quick", "val_wiki"], "val_wiki"),
        (["val_quick", "held_out", "train"], "held_out"),
        (["train", "val_quick"], "val_quick"),
    ],
)
def test_the_split_that_judges_is_the_one_that_was_not_trained_on(
    splits: list[str], judge: str
) -> None:
    assert preferred_split(splits) == preferred_split(splits[::-1]) == judge


def test_what_is_counted_per_token_depends_on_the_tokenizer() -> None:
    for metric in ("loss", "val_loss", "perplexity", "ppl", "nll", "accuracy", "bits_per_token"):
        assert is_per_token(metric), metric
    for metric in (
        "bits_per_byte",
        "bpb",
        "word_perplexity",
        "byte_perplexity",
        "tokens_per_second",
    ):
        assert not is_per_token(metric), metric
    assert not is_per_token("gradient_norm") and not is_per_token("word_error_rate")


@pytest.mark.parametrize("split", ["eval", "dev", "valid", "Val"])
def test_a_run_is_ranked_by_what_it_was_not_trained_on(split: str) -> None:
    for name, train, held_out in (("overfitted", 0.1, 3.0), ("sound", 1.0, 2.0)):
        frame = pd.DataFrame({"split": ["train", split], "step": 1, "loss": [train, held_out]})
        save_experiment(name, frame)
    catalogue = Catalogue()
    best = [(summary.name, summary.split) for _, summary in catalogue.best("loss")]
    assert best == [("sound", split), ("overfitted", split)]
    assert [run.best_loss for run in catalogue.overview()] == [3.0, 2.0]
