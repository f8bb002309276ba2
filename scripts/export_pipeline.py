"""Write the weights of a run as a folder that diffusers opens without this repository, with vae, scheduler and the pipeline's code.

    python scripts/export_pipeline.py --workdir=workdir/phantom32_ldm
    python -c 'from diffusers import DiffusionPipeline as P; \
        P.from_pretrained("workdir/phantom32_ldm/pipeline", trust_remote_code=True)(class_label=0).images[0].save("image.png")'

For networks unet_label, controlnet and unet_sd. The best checkpoint's averaged weights, as train_class_ldm.py and its like leave
them at the end of a training; --nnet_path takes others, also the checkpoint_*.pt of Diffusion-Model-SOTA. How the pipeline
samples where a call does not say is config.sample's (--config.sample.guidance=3).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from libs import cli, engine, evaluation  # noqa: E402
from libs.pipeline import exporting, exporting_sd  # noqa: E402


def export(config, workdir, nnet_path, output_path):
    run = engine.start(config, workdir, claim=False)
    trained = evaluation.open_trained(run, config, workdir, nnet_path, with_data=False, with_prompts=False, exact=True)
    folder = Path(output_path or Path(workdir) / "pipeline")
    if folder.exists() and not any((folder / name).is_file() for name in ("model_index.json", exporting_sd.LORA_FILE)):
        raise ValueError(f"--output_path={folder} is there and is no pipeline; it would be replaced: give another folder")
    if run.is_main:
        exporting.export(folder, trained.sampler, trained.classes)
        readme = ", its README.md shows how to use it" if (folder / "README.md").is_file() else ""
        print(f"pipeline in {folder}{readme}\nweights: {evaluation.weights_used(trained, **trained.weights)}")
    run.finish()


if __name__ == "__main__":
    cli.main(export, output_path=("", "folder to write; by default <workdir>/pipeline"))
