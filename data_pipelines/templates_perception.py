# SPDX-License-Identifier: Apache-2.0
"""Wordings of what is asked of the decoders that see, and of the answers that hold their links.

The wordings are this project's own, as those of `data_pipelines.templates`, which lists both. `{link}` stands
for all links of an answer, with the names in front of them where its dataset writes names.
"""

from collections.abc import Mapping

PERCEPTION: Mapping[str, tuple[str, ...]] = {
    "referring": (
        "Show me {expression}.",
        "Which object is {expression}?",
        "Point at {expression} in this picture.",
        "Where is {expression}?",
        "Find {expression}, please.",
        "I am looking for {expression}.",
        "Locate {expression}.",
        "Can you see {expression}? Mark it.",
        "What part of the picture is meant by {expression}?",
        "Pick out {expression}.",
    ),
    "referred": (
        "It is {link}.",
        "Here: {link}.",
        "This one: {link}.",
        "You mean {link}.",
        "I marked it {link}.",
        "There it is {link}.",
    ),
    "segmentation": (
        "Label every pixel with one of: {classes}.",
        "Produce one mask for each of {classes}.",
        "Partition the scene into {classes}.",
        "Which pixels belong to each of these: {classes}?",
        "Divide the picture into areas of {classes}.",
        "Segment the whole scene; the classes are {classes}.",
        "Draw a map of {classes}.",
        "Tell these apart, pixel by pixel: {classes}.",
    ),
    "segmented": (
        "The masks: {link}.",
        "Partitioned into {link}.",
        "The areas are {link}.",
        "Here is the map: {link}.",
        "Every pixel has its class: {link}.",
    ),
    "saliency": (
        "Cut out the {classes} of this photo.",
        "Segment the {classes}.",
        "Give me a mask of the {classes}.",
        "Separate the {classes} from everything else.",
        "Which pixels show the {classes}?",
        "Outline the {classes}, please.",
        "Where does the {classes} begin and end?",
        "Mark the {classes} in this picture.",
    ),
    "cut_out": (
        "Here is the mask: {link}.",
        "Cut out: {link}.",
        "This is the {link}.",
        "I separated the {link}.",
        "Done, the {link}.",
    ),
    "interactive": (
        "Segment the objects indicated by {region}.",
        "What belongs to {region}? Draw masks.",
        "Outline {region}.",
        "I marked {region}. Give me the whole objects.",
        "Complete the objects at {region}.",
        "Which pixels are part of what {region} point at?",
        "Turn {region} into masks.",
        "Extract the objects behind {region}.",
    ),
    "outlined": (
        "The masks: {link}.",
        "Here are the objects: {link}.",
        "Segmented: {link}.",
        "These are their outlines: {link}.",
    ),
    "counting": (
        "How many {classes} are there?",
        "Count every {classes}.",
        "Tell me the number of {classes} in this picture.",
        "What is the count of {classes} here?",
        "I need the {classes} counted.",
        "Find all {classes} and count them.",
    ),
    "counting_alike": (
        "How many objects like {region} are there?",
        "Count everything that looks like {region}.",
        "Find all things of the kind of {region} and count them.",
        "What is the number of objects similar to {region}?",
        "{region} shows an example. How many are there in all?",
    ),
    "counted": (
        "Here they are: {link}. That makes {n}.",
        "Found: {link}, {n} in all.",
        "I marked them: {link}. The count is {n}.",
        "All of {link}: {n}.",
    ),
    "grounded_caption": (
        "Please also point to every object you mention.",
        "Name and locate the things in your answer.",
        "Mark each thing that you speak of.",
        "Show where the objects of your answer are.",
        "Ground your answer in the picture.",
    ),
}
