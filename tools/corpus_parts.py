"""The hand-written parts that ``train_tokenizer.py`` combines into the corpus.

Everything here was written for this project. Facts are simple on purpose: the model that learns
from them is a few thousand n-grams, and a reader of the demo should be able to tell sense from
nonsense at a glance.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ADJECTIVES",
    "ANIMALS",
    "CHINESE_PAIRS",
    "CHINESE_PROSE",
    "CODE_PAIRS",
    "EMOJI_PAIRS",
    "NAMES",
    "PARAGRAPHS",
    "PLACES",
    "QUESTIONS",
    "SYSTEMS",
    "THINGS",
    "VERBS",
    "WEATHER",
]

SYSTEMS: Final = (
    "You are a helpful assistant.",
    "You answer in one short sentence.",
    "You are a patient teacher of mathematics. Show every step.",
    "You are a careful programmer. Prefer small functions and clear names.",
    "You may use the tools that are offered. Use them when a fact has to be looked up.",
    "你是一个乐于助人的助手，请用简洁的中文回答。",
    "You are a cheerful guide who likes emoji.",
)

QUESTIONS: Final = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Kenya?", "The capital of Kenya is Nairobi."),
    ("What is the capital of Norway?", "The capital of Norway is Oslo."),
    ("What is the capital of Peru?", "The capital of Peru is Lima."),
    ("What is the capital of China?", "The capital of China is Beijing."),
    ("Which planet is the largest?", "Jupiter is the largest planet in the solar system."),
    ("Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
    (
        "Why is the sky blue?",
        "Air scatters blue light more strongly than red light, so the sky "
        "looks blue when the sun stands high.",
    ),
    (
        "How do plants make food?",
        "Plants use sunlight, water and carbon dioxide to make sugar; "
        "this is called photosynthesis.",
    ),
    ("How many legs does a spider have?", "A spider has eight legs."),
    (
        "How many minutes are in a day?",
        "A day has 24 hours of 60 minutes, which makes 1440 minutes.",
    ),
    (
        "What is a prime number?",
        "A prime number is a whole number above one that can be divided "
        "only by one and by itself, such as 2, 3, 5, 7 and 11.",
    ),
    (
        "What does a router do?",
        "A router reads where a message wants to go and passes it on to the right neighbour.",
    ),
    (
        "What is a token?",
        "A token is a small piece of text, often a word or a part of a word, "
        "that a language model reads and writes as one number.",
    ),
    (
        "What is a loss mask?",
        "A loss mask marks the tokens that the model wrote itself, so that "
        "training looks only at those and not at the prompt.",
    ),
    (
        "What is reinforcement learning?",
        "Reinforcement learning improves a policy by trying "
        "actions, measuring the reward and making the good actions more likely.",
    ),
    ("What is a reward?", "A reward is a number that says how good an answer was."),
    (
        "Can you explain gravity?",
        "Gravity pulls masses towards each other; the heavier and the "
        "closer they are, the stronger the pull.",
    ),
    (
        "What is water made of?",
        "Water is made of hydrogen and oxygen: two atoms of hydrogen and one atom of oxygen.",
    ),
    (
        "When does water boil?",
        "At sea level water boils at 100 degrees Celsius, which is 212 degrees Fahrenheit.",
    ),
    ("Who looks after bees?", "A beekeeper looks after bees and harvests their honey."),
    ("What do whales eat?", "Many whales eat krill and small fish; some hunt squid and seals."),
    (
        "What is the fastest land animal?",
        "The cheetah is the fastest land animal; it can run about 110 kilometres per hour.",
    ),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water, wait seven minutes, then cool it "
        "under cold water and peel it.",
    ),
    (
        "How do I make tea?",
        "Heat the water, pour it over the leaves, wait three minutes and remove the leaves.",
    ),
    (
        "What should I cook tonight?",
        "Try a simple soup: onions, carrots, potatoes, a little salt and fresh bread on the side.",
    ),
    (
        "Give me a tip for learning a language.",
        "Read a little every day, speak without fear and write down the words that you meet twice.",
    ),
    (
        "Tell me something about rivers.",
        "Rivers carry water from the mountains to the sea and shape the valleys on their way.",
    ),
    (
        "Tell me a short story.",
        "Once a small lighthouse keeper forgot the lamp, and all the "
        "stars came down to help the ships find the harbour.",
    ),
    (
        "Write a haiku about autumn.",
        "Leaves drift to the pond,\na heron watches the rain,\nthe year folds its wings.",
    ),
    (
        "Summarise the plan.",
        "First we collect the data, then we train the model, and finally we "
        "measure whether it has become better.",
    ),
    (
        "Is the moon a star?",
        "No. The moon is a body of rock that circles the earth and reflects the light of the sun.",
    ),
    (
        "Why do we sleep?",
        "Sleep gives the body time to repair itself and helps the brain to keep "
        "what it has learned.",
    ),
    ("What is a good name for a cat?", "Pepper is a good name for a cat, and so is Mochi."),
    ("How tall is a giraffe?", "A grown giraffe is about five metres tall."),
    (
        "What is the speed of light?",
        "Light travels about 299,792 kilometres per second in a vacuum.",
    ),
    (
        "What does HTTP mean?",
        "HTTP means hypertext transfer protocol; browsers and servers use "
        "it to ask for pages and to answer.",
    ),
    (
        "What is the difference between a list and a tuple?",
        "A list can be changed after it has been made, a tuple cannot.",
    ),
    (
        "What is a cache good for?",
        "A cache keeps the results of earlier work close at hand, so "
        "that the same work need not be done twice.",
    ),
    ("Why do tests matter?", "Tests tell you that a change broke something before your users do."),
    ("Do you like music?", "I cannot hear it, but I enjoy talking about melodies and rhythm."),
    (
        "Where do penguins live?",
        "Penguins live in the southern half of the world, many of them on the ice of Antarctica.",
    ),
    (
        "What are the three primary colours?",
        "Red, yellow and blue are the colours a painter "
        "starts from; a screen uses red, green and blue.",
    ),
    ("Thank you!", "You are welcome. Is there anything else I can do for you?"),
    ("Goodbye.", "Goodbye, and have a pleasant day!"),
    ("Hello!", "Hello! How can I help you today?"),
    ("Who are you?", "I am a small language model, made of nothing but counted words."),
)

PARAGRAPHS: Final = (
    "The old ferry crosses the bay six times a day. In the morning it carries bakers and "
    "teachers, at noon the mail, and late in the evening a few quiet people who look at the "
    "lights of the city. Nobody remembers a day on which it did not run.",
    "A good measurement begins with a question. Write down what you expect, change one thing at "
    "a time, and repeat the experiment until chance can no longer explain the difference. Then "
    "tell others exactly what you did, so that they may find your mistakes.",
    "Bread needs four things: flour, water, salt and time. Mix them, wait, fold the dough, wait "
    "again, and heat the oven until the stone is hot. The crust should sing when it cools.",
    "When the glacier retreated it left a long lake and a hill of gravel. Grass came first, then "
    "birch and alder, and after a few hundred years a forest of spruce. Today the road follows "
    "the shore, and the gravel has become houses.",
    "Every queue tells a story about two speeds: how fast work arrives and how fast it is done. "
    "If the first is larger than the second, no clever order will help. If it is smaller, almost "
    "any fair order will do.",
    "The library lends books, tools, seeds and, on Saturdays, people: a retired pilot, a nurse, "
    "a violin maker. You may borrow them for half an hour and ask whatever you like.",
    "To debug a program, first make the failure happen every time. Then cut away half of the "
    "input and see whether it still fails. Most of the work is done once the example is small "
    "enough to read.",
    "The committee met in the small room because the large one was being painted. They agreed "
    "on the date, the budget and the colour of the chairs; only the name of the project was "
    "postponed until the autumn.",
    "Sailors once measured speed with a rope that had a knot every few metres. They threw it "
    "over the stern, let it run while the sand fell in a glass, and counted the knots. The unit "
    "has kept its name, although the rope is long gone.",
    "My grandmother wrote her recipes on the backs of envelopes. She gave no amounts, only "
    "adjectives: enough sugar, warm milk, patient butter. It took us years to learn what a "
    "patient butter is.",
    "The server listens on a port, accepts a connection, reads the request line and the headers, "
    "and looks for an empty line. Whatever follows is the body. It sounds simple until somebody "
    "sends one byte per minute.",
    "Chess players speak of tempo, potters of centering, gardeners of hardening off. Each craft "
    "has its own words for waiting at the right moment.",
    "If two clocks disagree, you know that one of them is wrong. If they agree, you know only "
    "that they agree. This is why careful people carry three.",
    "At night the workshop smells of cedar and machine oil. Shavings curl under the bench, the "
    "radio murmurs, and the half-finished boat stands on its trestles like a patient animal.",
    "A language model assigns a probability to every next token. Sampling draws one of them; "
    "temperature makes the choice bolder or more careful; and the logarithm of the probability "
    "is what a trainer wants to know afterwards.",
    "Dear neighbour, the parcel for number 14 is with me. I am at home after five o'clock, "
    "except on Thursday, when I sing in the choir. Please ring twice, the bell is weak.",
    "The meeting starts at 09:30 in room B-207. Please bring your laptop, the signed form "
    "(two pages), and a list of open questions. We expect to finish before 11:45.",
    "Version 2.4.1 fixes three problems: the importer no longer drops empty rows, dates before "
    "1970 are shown correctly, and the export button works again on small screens.",
)

CHINESE_PROSE: Final = (
    "今天天气很好，我们一起去公园散步吧。路边的樱花已经开了，空气里有淡淡的香味。",
    "语言模型会给每一个可能的下一个词分配一个概率，然后按照这个概率进行采样。",
    "学习一门新的语言需要耐心。每天读一点，写一点，说一点，几个月以后就会看到进步。",
    "图书馆每天早上九点开门，晚上八点关门，周末开放时间会缩短两个小时。",
    "这条河从山上流下来，经过三个村庄，最后流进大海。春天的时候水最多。",
    "请把文件发给我，我会在下午三点以前检查完毕，然后把结果告诉大家。",
    "做面包需要面粉、水、盐和时间。先把它们混合，等待，再放进烤箱。",
    "工程师们先写测试，再写代码。测试失败的时候，他们会先找到原因，然后再修改。",
)

CHINESE_PAIRS: Final = (
    ("你好！", "你好！有什么可以帮助你的吗？"),
    ("中国的首都是哪里？", "中国的首都是北京。"),
    ("法国的首都是哪里？", "法国的首都是巴黎。"),
    ("日本的首都是哪里？", "日本的首都是东京。"),
    ("天空为什么是蓝色的？", "因为空气对蓝光的散射比对红光更强，所以天空看起来是蓝色的。"),
    ("水在多少度沸腾？", "在海平面上，水在一百摄氏度沸腾。"),
    ("请介绍一下你自己。", "我是一个很小的语言模型，由统计出来的词语组成。"),
    ("什么是词元？", "词元是一小段文字，模型把它当作一个数字来读写。"),
    ("什么是强化学习？", "强化学习通过尝试、奖励和改进，让好的行为变得更有可能。"),
    ("请给我讲一个故事。", "从前有一个灯塔看守人，他忘记了点灯，星星就下来帮助船只找到港口。"),
    ("谢谢你！", "不客气，祝你今天愉快！"),
    ("怎么泡茶？", "先把水烧开，倒在茶叶上，等三分钟，再把茶叶拿出来。"),
    ("蜘蛛有几条腿？", "蜘蛛有八条腿。"),
    ("一天有多少分钟？", "一天有二十四个小时，一共一千四百四十分钟。"),
    ("明天会下雨吗？", "明天下午可能会下雨，出门请带伞。"),
    ("你喜欢音乐吗？", "我听不见音乐，但是我喜欢谈论旋律和节奏。"),
)

CODE_PAIRS: Final = (
    (
        "Write a function that adds two numbers.",
        "```python\ndef add(a: int, b: int) -> int:\n    return a + b\n```",
    ),
    (
        "Write a function that computes a factorial.",
        "```python\ndef factorial(n: int) -> int:\n    if n <= 1:\n        return 1\n"
        "    return n * factorial(n - 1)\n```",
    ),
    (
        "Write a loop that prints the squares.",
        "```python\nfor i in range(10):\n    print(i, i * i)\n```",
    ),
    (
        "How do I read a file in Python?",
        '```python\nwith open("notes.txt", encoding="utf-8") as file:\n    for line in file:\n'
        "        print(line.rstrip())\n```",
    ),
    (
        "Write a class for a stack.",
        "```python\nclass Stack:\n    def __init__(self) -> None:\n"
        "        self.items: list[int] = []\n"
        "\n    def push(self, item: int) -> None:\n        self.items.append(item)\n\n"
        "    def pop(self) -> int:\n        return self.items.pop()\n```",
    ),
    (
        "How do I count words?",
        "```python\nfrom collections import Counter\n\ncounts = Counter(text.split())\n"
        "print(counts.most_common(5))\n```",
    ),
    (
        "Show me a binary search.",
        "```python\ndef search(values: list[int], wanted: int) -> int:\n"
        "    low, high = 0, len(values)"
        "\n    while low < high:\n        middle = (low + high) // 2\n        if values[middle] < "
        "wanted:\n            low = middle + 1\n        else:\n            high = middle\n"
        "    return low\n```",
    ),
    (
        "Write a shell loop over all logs.",
        '```bash\nfor file in *.log; do\n  echo "$file: $(wc -l < "$file")"\ndone\n```',
    ),
    (
        "How do I call a server from JavaScript?",
        '```javascript\nconst reply = await fetch("/generate", {\n  method: "POST",\n  body: '
        'JSON.stringify({ text: "Hello" }),\n});\nconsole.log(await reply.json());\n```',
    ),
    (
        "Write a query for the newest orders.",
        "```sql\nSELECT id, customer, total\nFROM orders\nWHERE created_at >= '2024-01-01'\n"
        "ORDER BY created_at DESC\nLIMIT 20;\n```",
    ),
    (
        "Show me a small Rust program.",
        '```rust\nfn main() {\n    let words = vec!["red", "green", "blue"];\n    for word in '
        '&words {\n        println!("{word}");\n    }\n}\n```',
    ),
    (
        "How do I sleep in Trio?",
        "```python\nimport trio\n\n\nasync def main() -> None:\n    async with "
        "trio.open_nursery() as nursery:\n        nursery.start_soon(trio.sleep, 1)\n\n\n"
        "trio.run(main)\n```",
    ),
)

EMOJI_PAIRS: Final = (
    ("How do you feel today? 🙂", "I feel great! ☀️ How about you? 😊"),
    ("We won the match! 🎉", "Congratulations! 🏆 That calls for a party 🥳🎈"),
    ("I am tired 😴", "Then rest a little 🛌 and drink some tea 🍵"),
    ("My dog is sick 🐶", "I am sorry 😢 A visit to the vet 🏥 may help."),
    ("Look at my garden 🌻", "What lovely flowers 🌷🌼 and so many bees 🐝!"),
    ("It is raining 🌧️", "Take an umbrella ☔ and warm socks 🧦"),
    ("I baked a cake 🎂", "Delicious 😋 May I have a slice? 🍰"),
    ("We are a family 👨‍👩‍👧‍👦", "Greetings to all four of you 👋🏽❤️"),
    ("Launch the rocket 🚀", "Three, two, one … 🚀✨ We have lift-off!"),
)

NAMES: Final = (
    "Ada",
    "Bruno",
    "Chen",
    "Dora",
    "Emil",
    "Fatima",
    "Goran",
    "Hana",
    "Ivan",
    "Jolene",
    "Kofi",
    "Lina",
    "Mateo",
    "Nadia",
    "Oskar",
    "Priya",
    "Quentin",
    "Rosa",
    "Sven",
    "Tomoko",
    "Ursula",
    "Viktor",
    "Wanda",
    "Yusuf",
    "Zoe",
)

PLACES: Final = (
    "the harbour",
    "the market",
    "the old bridge",
    "the station",
    "a quiet village",
    "the museum",
    "the mountain hut",
    "the botanical garden",
    "the workshop",
    "the lighthouse",
    "the library",
    "the kitchen",
    "the laboratory",
    "the rooftop",
    "the riverside",
    "the theatre",
    "the airport",
)

ANIMALS: Final = (
    "cat",
    "heron",
    "fox",
    "donkey",
    "sparrow",
    "hedgehog",
    "otter",
    "horse",
    "tortoise",
    "goat",
    "rabbit",
    "owl",
    "dolphin",
    "squirrel",
    "beetle",
    "swan",
)

ADJECTIVES: Final = (
    "small",
    "clever",
    "tired",
    "yellow",
    "friendly",
    "ancient",
    "silent",
    "curious",
    "brave",
    "wooden",
    "bright",
    "gentle",
    "stubborn",
    "heavy",
    "delicate",
    "wonderful",
    "broken",
    "invisible",
    "careful",
    "famous",
    "hungry",
    "patient",
)

THINGS: Final = (
    "lantern",
    "map",
    "violin",
    "bicycle",
    "umbrella",
    "telescope",
    "notebook",
    "basket",
    "key",
    "teapot",
    "ladder",
    "camera",
    "compass",
    "letter",
    "blanket",
    "clock",
    "hammer",
    "mirror",
    "suitcase",
    "pencil",
    "candle",
    "engine",
    "window",
    "keyboard",
)

VERBS: Final = (
    "found",
    "repaired",
    "borrowed",
    "painted",
    "forgot",
    "carried",
    "hid",
    "sold",
    "described",
    "dropped",
    "returned",
    "measured",
    "photographed",
    "lost",
    "cleaned",
    "admired",
    "wrapped",
    "opened",
    "examined",
    "collected",
)

WEATHER: Final = (
    "sunny",
    "cloudy",
    "rainy",
    "foggy",
    "windy",
    "snowy",
    "stormy",
    "clear",
)
