"""What metrics are called on a page, which way is better, and what they say: one list for all pages."""

# name: (title, "lower", "higher" or "" for better, what it says)
MEANINGS = {
    "fid": ("FID", "lower",
            "Fréchet distance between Gaussians fitted to Inception features of real and generated images. 0 is identical; it "
            "grows as N falls, so compare at equal N only."),
    "fd": ("Fréchet distance", "lower",
           "Distance between Gaussians fitted to features of real and generated images. 0 is identical; it grows as N falls, so "
           "compare at equal N only."),
    "kid": ("KID", "lower",
            "Kernel distance between features of real and generated images, unbiased in N. About 0 is as good as real; slightly "
            "negative values are chance."),
    "precision": ("Precision", "higher", "Share of generated images that lie among the real ones: are they plausible? 1 at most."),
    "recall": ("Recall", "higher",
               "Share of real images that lie among the generated ones: is the whole variety covered? 1 at most."),
    "density": ("Density", "higher",
                "How many real neighbourhoods a generated image falls into, relative to a real one: about 1 is as real, and "
                "more is possible."),
    "coverage": ("Coverage", "higher", "Share of real images that have a generated one in their neighbourhood. 1 at most."),
    "accuracy": ("Accuracy", "higher",
                 "Share of generated images that a classifier trained on real ones recognises as the class asked for. 1 at "
                 "most."),
    "agreement": ("Agreement", "higher",
                  "Share of generated images that show the attribute as their text asks for it; texts that do not mention it "
                  "are left out. Real images do so as stated below."),
    "dice": ("Dice", "higher",
             "Overlap of the mask asked for with the one that a network, trained on real pairs, finds in the image; without a "
             "name, the mean over the classes of the mask but the background. 1 at most; real images reach what is stated "
             "above."),
    "balanced_accuracy": ("Balanced accuracy", "higher",
                          "Mean over the classes of the share of their images that are recognised: rare classes count as much. "
                          "1 at most."),
    "nll": ("Negative log-likelihood", "lower",
            "Mean of −log of the probability given to the true class, in nats. 0 is sure and right; whoever knows nothing has "
            "log of the number of classes."),
    "ece": ("Calibration error", "lower",
            "How far the probability of the class said is from the share in which it is right (expected calibration error). 0 "
            "is as sure as right."),
    "brier": ("Brier score", "lower",
              "Squared distance of the class probabilities from the truth: 0 is sure and right, 2 sure and wrong."),
    "temperature": ("Temperature", "",
                    "Logits divided by it are calibrated best: above 1 the classifier is too sure, below 1 not sure enough."),
    "is": ("Inception score", "higher",
           "How sure and how varied a classifier is about the generated images. It never looks at a real one. 1 at least."),
}


COLOUR = "colour"  # the feature network that is none: mean and deviation of each colour channel
# The same metrics where these six numbers are all that is compared.
OF_COLOUR = {
    "fd": "Distance between the colours of real and generated images: of the mean and the deviation of each channel, and of nothing "
          "else. 0 is alike in these; it grows as N falls, so compare at equal N only.",
    "kid": "Kernel distance between the mean and deviation of the colours of real and generated images, unbiased in N. About 0 is "
           "alike in these.",
    "precision": "Share of generated images whose mean colour and contrast occur among real ones. It cannot see shapes: blurred "
                 "images can reach 1.",
    "recall": "Share of real images whose mean colour and contrast occur among generated ones. It cannot see shapes.",
    "density": "How many real images lie near a generated one in mean colour and contrast, relative to a real one. It cannot see "
               "shapes.",
    "coverage": "Share of real images that have a generated one near them in mean colour and contrast. It cannot see shapes."}


def explain(name):
    """What the score `name` says, such as 'precision_inception'; '' for one that is not listed."""
    key = max((key for key in MEANINGS if f"{name}_".startswith(f"{key}_")), key=len, default="")
    if name == f"{key}_{COLOUR}" and key in OF_COLOUR:
        return OF_COLOUR[key]
    return MEANINGS[key][2] if key else ""
